# The image of the operator (/manager) and of the gateway pods' agent
# (/gateway-agent): two static binaries and nothing else.
#
# Same commit, same binaries: nothing of the building machine goes in. For the
# same image bytes too, a builder has to set file times to SOURCE_DATE_EPOCH
# (BuildKit: --output …,rewrite-timestamp=true); `make docker-build` sets it to
# the date of the commit.

ARG GO_VERSION=1.27.4
FROM golang:${GO_VERSION} AS build

# Where modules come from, for builders that do not reach the default.
ARG GOPROXY
ARG GOSUMDB
# Set by BuildKit when it builds for another platform than its own.
ARG TARGETOS
ARG TARGETARCH
ARG VERSION=dev
ENV CGO_ENABLED=0

WORKDIR /src
# Modules first: they change less often than the code, and stay cached.
COPY go.mod go.sum ./
RUN go mod download
COPY . .
RUN GOOS=${TARGETOS} GOARCH=${TARGETARCH} go build -trimpath -buildvcs=false \
    -ldflags "-s -w -X main.version=${VERSION}" -o /out/ ./cmd/manager ./cmd/gateway-agent

FROM scratch
COPY --from=build /out/manager /out/gateway-agent /
# By number, so that Kubernetes can see that it is not root.
USER 65532:65532
ENTRYPOINT ["/manager"]
