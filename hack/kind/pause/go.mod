module meshroute.io/meshroute/hack/kind/pause

go 1.26
