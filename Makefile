SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# go.mod names the one toolchain that builds everything; Go fetches it by
# itself. Container images and some machines set GOTOOLCHAIN=local, which would
# refuse this module; any other value is respected (make GOTOOLCHAIN=go1.28.0).
ifneq (,$(filter local auto,$(or $(GOTOOLCHAIN),local)))
override GOTOOLCHAIN := $(shell awk '$$1 == "toolchain" { t = $$2 } $$1 == "go" { g = "go" $$2 } END { print t ? t : g }' go.mod)
endif
export GOTOOLCHAIN

GO ?= go
KUBECTL ?= kubectl
export KUBECTL
CONTAINER_TOOL ?= docker

# The image of the operator and of the gateway's agent.
IMG ?= meshroute:latest
# What `make deploy` applies: a folder of config/.
OVERLAY ?= config/default
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

# What to run of the integration tests: a regular expression on their names,
# and Ginkgo's label filter.
FOCUS ?=
LABELS ?=
export FOCUS LABELS
SELECTION = $${FOCUS:+--focus="$$FOCUS"} $${LABELS:+--label-filter="$$LABELS"}
# How long to fuzz each target, and how many gateways to show to Envoy.
FUZZTIME ?= 1m
SAMPLES ?= 300
# What to measure, a regular expression on STAGE/NAME (`make bench BENCH='^1000/'`),
# and more flags (`go run ./test/bench -h`).
BENCH ?=
BENCHFLAGS ?=
# More flags, for `go test` (unit) and for ginkgo (integration, deflake).
TESTFLAGS ?=
GINKGOFLAGS ?=

TOOL := hack/tool.sh

# Both are got at their first use and kept outside the checkout.
ENVOY_BIN_SET = ENVOY_BIN=$$(hack/envoy.sh); export ENVOY_BIN
ASSETS_SET = KUBEBUILDER_ASSETS=$$(hack/envtest.sh); export KUBEBUILDER_ASSETS

##@ General

.PHONY: help
help: ## Show this help.
	@if [[ -t 1 ]]; then head=$$'\e[1m' name=$$'\e[36m' end=$$'\e[0m'; else head= name= end=; fi; \
	awk -v h="$$head" -v n="$$name" -v e="$$end" 'BEGIN { FS = ":.*## "; print "Usage: make TARGET [VARIABLE=value …]" } \
	  /^##@/ { printf "\n%s%s%s\n", h, substr($$0, 5), e } \
	  /^[a-z0-9-]+:.*## / { printf "  %s%-13s%s %s\n", n, $$1, e, $$2 }' $(MAKEFILE_LIST)

.PHONY: clean
clean: ## Remove what builds left in the checkout (tools and servers are cached outside it).
	rm -rf bin

##@ Try it

.PHONY: demo
demo: ## Run the monitoring sample on :8888 without a cluster: gateway, backends, live table.
	hack/demo.sh up

.PHONY: demo-down
demo-down: ## Stop what `make demo` started.
	hack/demo.sh down

##@ Develop

.PHONY: generate
generate: ## Regenerate Go code: DeepCopy, apply configurations where markers ask for them, and what agents tell managers.
	$(TOOL) controller-gen object applyconfiguration paths=./api/...
	$(TOOL) protoc "$$($(TOOL) --path protoc-gen-go)=paths=source_relative" "$$($(TOOL) --path protoc-gen-go-grpc)=paths=source_relative" internal/report/reportv1/report.proto

.PHONY: manifests
manifests: ## Regenerate CRDs and RBAC from the markers in api/ and controllers/.
	$(TOOL) controller-gen crd paths=./api/... output:crd:dir=config/crd/bases
	if [[ -d controllers ]]; then $(TOOL) controller-gen rbac:roleName=meshroute-manager paths=./controllers/... output:rbac:dir=config/rbac; fi

.PHONY: docs
docs: ## Regenerate the API reference (docs/reference.md) from the Go types.
	mkdir -p docs
	$(TOOL) crd-ref-docs --source-path=api --config=hack/reference.yaml --renderer=markdown --output-path=docs/reference.md --log-level=ERROR

.PHONY: fmt
fmt: ## Format the Go code (gofumpt, import groups).
	$(TOOL) golangci-lint fmt

.PHONY: lint
lint: ## Run the linters; the import rules of the design are among them.
	$(TOOL) golangci-lint run

.PHONY: verify
verify: ## Check all that needs no test: generated files current, modules tidy, formatting, linters, scripts.
	@hack/verify.sh

##@ Test

.PHONY: test
test: unit integration e2e ## Run every test; what they need is set up on the way.

.PHONY: unit
unit: ## Run tables and golden files, in seconds; Envoy itself validates its golden files.
	$(ENVOY_BIN_SET); $(GO) test $(TESTFLAGS) $$($(GO) list ./... | grep -v /test/)

.PHONY: integration
integration: ## Run tests with a real API server and a real Envoy (FOCUS, LABELS; needs root for network namespaces).
	hack/need.sh netns
	$(ENVOY_BIN_SET); $(ASSETS_SET); $(TOOL) ginkgo run --require-suite --randomize-all --fail-on-pending --timeout=20m --poll-progress-after=60s $(SELECTION) $(GINKGOFLAGS) ./test/integration/...

.PHONY: e2e
e2e: ## Use the product as its users do: the demo, then a real cluster (FOCUS, LABELS, E2E_CLUSTER: see hack/e2e.sh).
	@MAKE=$(MAKE) IMG=$(IMG) hack/e2e.sh $(GINKGOFLAGS)

.PHONY: deflake
deflake: ## Repeat integration tests until one fails (FOCUS, LABELS).
	hack/need.sh netns
	$(ENVOY_BIN_SET); $(ASSETS_SET); $(TOOL) ginkgo run --until-it-fails --require-suite --randomize-all --poll-progress-after=60s $(SELECTION) $(GINKGOFLAGS) ./test/integration/...

.PHONY: fuzz
fuzz: ## Look for objects that break the translation, FUZZTIME for each target; then show Envoy what is made of SAMPLES gateways at random (4.5 minutes if nothing is given).
	$(GO) test ./internal/model -run '^$$' -fuzz '^FuzzBuild$$' -fuzztime $(FUZZTIME)
	$(GO) test ./internal/envoy -run '^$$' -fuzz '^FuzzTranslate$$' -fuzztime $(FUZZTIME)
	$(ENVOY_BIN_SET); $(GO) test ./internal/envoy -run '^TestEnvoyTakesAnything$$' -timeout 60m -v -samples $(SAMPLES)

.PHONY: bench
bench: ## Measure what docs/benchmarks.md promises (BENCH, BENCHFLAGS; needs root for network namespaces).
	hack/need.sh netns
	$(ENVOY_BIN_SET); $(ASSETS_SET); $(GO) run ./test/bench -run "$(BENCH)" $(BENCHFLAGS)

##@ Build

.PHONY: build
build: ## Build bin/manager and bin/gateway-agent.
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$(VERSION)" -o bin/ ./cmd/manager ./cmd/gateway-agent

# The date of the last commit, so that the same commit gives the same image
# with builders that honour it.
.PHONY: docker-build
docker-build: ## Build the image IMG with manager and gateway-agent.
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(CONTAINER_TOOL) build --build-arg GO_VERSION=$(patsubst go%,%,$(GOTOOLCHAIN)) --build-arg VERSION=$(VERSION) --tag $(IMG) .

##@ A cluster on this machine (KIND_NAME, KIND_PORT, KIND_TEST_PORTS, KIND_KUBERNETES, KIND_IP_FAMILY)

.PHONY: kind-up
kind-up: ## Make a cluster of two nodes with kind; what is missing is installed or built on the way.
	@hack/kind.sh up

.PHONY: kind-demo
kind-demo: ## The monitoring sample in it, on 127.0.0.1:8888, with all that this needs.
	@MAKE=$(MAKE) IMG=$(IMG) VERSION=$(VERSION) hack/kind/demo.sh

.PHONY: kind-down
kind-down: ## Remove it, and nothing else.
	@hack/kind.sh down

.PHONY: images
images: ## Make the images for it: IMG, the tests' backend, and those that no registry gives.
	@IMG=$(IMG) VERSION=$(VERSION) hack/images.sh >/dev/null

.PHONY: kind-load
kind-load: ## Load them into its nodes.
	@archives=$$(IMG=$(IMG) VERSION=$(VERSION) hack/images.sh); hack/kind.sh load $$archives

##@ Cluster (the one of kubectl's current context)

.PHONY: install
install: ## Install our CRDs, and those of Gateway API that the cluster lacks.
	hack/gateway-api.sh
	$(KUBECTL) apply --server-side --force-conflicts -f config/crd/bases
	$(KUBECTL) wait --for=condition=Established --timeout=60s -f config/crd/bases

.PHONY: uninstall
uninstall: ## Remove our CRDs, and with them every object of their kinds; Gateway API stays.
	$(KUBECTL) delete --ignore-not-found -f config/crd/bases

# What somebody has changed by hand of what these manifests say is set back, or
# an upgrade would fail on it; what they don't say stays.
.PHONY: deploy
deploy: install ## Run the operator from the image IMG, with GatewayClass and default Gateway.
	$(render) | $(KUBECTL) apply --server-side --force-conflicts -f -

.PHONY: undeploy
undeploy: ## Remove the operator, all that it made, and our CRDs; Gateway API and its objects stay.
	hack/undeploy.sh

# OVERLAY with the image IMG, through an overlay that is no part of the
# repository: `kustomize edit` on the original would leave a changed file.
render = { rm -rf bin/deploy && mkdir -p bin/deploy && cd bin/deploy && \
  ../../$(TOOL) kustomize create --resources ../../$(OVERLAY) >&2 && \
  ../../$(TOOL) kustomize edit set image meshroute=$(IMG) >&2 && \
  ../../$(TOOL) kustomize build .; }
