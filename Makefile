# kubelink: build, test, show. `make help` lists the targets.

K8S_VERSION   := v1.36.3
CONTROLPLANE  := .cache/controlplane-$(K8S_VERSION)
CONTROLLER_GEN := sigs.k8s.io/controller-tools/cmd/controller-gen@v0.23.0
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
VERSION       := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
REVISION      := $(shell git rev-parse HEAD 2>/dev/null)
# The race detector's runtime needs libgcc, which only the external linker brings.
RACE_LDFLAGS  := -ldflags=-linkmode=external
# Real nodes (kubelet, containerd) need root. Without root, make test names the tests that it leaves out.
ROOT          := $(filter 0,$(shell id -u))
# The cases in which mode wireguard differs from mode bridge. make matrix runs all of them in both modes.
WIREGUARD_TESTS := TestServices|TestMeshService(Traffic|Offers|Ingress|HostileOffers)|$\
  TestFormerMeshServices|TestPing|TestUDP|$\
  TestTransfer|TestMTU|TestNames|TestMetrics\w+|TestChangeAndDelete|TestTwoMeshes|TestGatewayLink|$\
  TestIngressLists|TestInboundFilter|TestInvalidObjects|TestPeerKilledAndRestarted|TestPeerSilent|$\
  TestBrokerKilledAndRestarted|TestShutdown|TestReload|TestAdvertisedDNS|TestServeStale|$\
  TestWireGuard(Keys|PresharedKey|BadKey|Inbound|EndpointMoves|Roams|Adopts\w+|HostilePeer)
# These end-to-end tests mostly wait, for limits of kubelink: make test runs them on a test bed of their own, beside
# the others. Mode wireguard has the machine for itself: its tests have times to keep.
LONG_TESTS    := TestAPIFaults|TestAPIServerAway|TestAdvertisedAPIAccess\w*|TestConfigureClusterDNS|$\
  TestIptablesNeverEnds|TestKubernetesDNSCredentials|TestLinkLostWhileXtablesIsLocked|TestOverlayPodMode|TestPodMode|$\
  TestRouterManyLinks
E2E            = cd test/e2e && KUBELINK=$(CURDIR)/bin/kubelink-race $(CURDIR)/bin/e2e-race.test -test.timeout 40m
FUZZTIME      ?= 5m
ARGS          ?=
IMAGE_FLAGS   ?=

.DEFAULT_GOAL := build
.PHONY: help build image controlplane demo test matrix bench fuzz generate lint system FORCE
.PHONY: e2e-most e2e-long e2e-wireguard

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

PROGRAMS := $(patsubst cmd/%,bin/%,$(wildcard cmd/kubelink*))
build: $(PROGRAMS) bin/kubectl-kubelink ## the programs, into bin

# go build finds out what is out of date better than make.
$(PROGRAMS) bin/kubectl-kubelink: FORCE
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o $@ ./cmd/$(@F)

# What Debian has replaced since the list was written does not stop tests.
demo test matrix: IMAGE_FLAGS := -newer
image: build ## bin/kubelink-image.tar for "ctr images import" and "docker load"; needs Debian's tools, but no engine
	go run ./deploy/image $(IMAGE_FLAGS) -version "$(VERSION)" -revision "$(REVISION)" $(PROGRAMS)

controlplane: ## etcd, Kubernetes, containerd and Helm for the tests, built once
	test/controlplane/build.sh

demo: system build controlplane $(if $(ROOT),image) ## two clusters, linked; ARGS=--once ends by itself, ARGS="--mode wireguard" is another mode
	go build -o bin/demo ./test/demo
	bin/demo $(ARGS)

test: system build controlplane $(if $(ROOT),image) ## everything, under the race detector
	CGO_ENABLED=1 go build -race -o bin/kubelink-race $(RACE_LDFLAGS) ./cmd/kubelink
	go test -race $(RACE_LDFLAGS) -p 4 ./broker/... ./cmd/... $$(go list ./deploy/... | grep -v /image$$) \
	  ./plugin/... ./router/... # four packages at a time: many of their tests wait
	go test ./deploy/image # one goroutine compresses: the race detector only makes it slow
	go test -race $(RACE_LDFLAGS) -c -o bin/e2e-race.test ./test/e2e
	$(MAKE) -j 2 --output-sync=target e2e-most e2e-long
	$(MAKE) e2e-wireguard
	KUBELINK=$(CURDIR)/bin/kubelink-race go test -race $(RACE_LDFLAGS) -p 1 -timeout 40m \
	  $$(go list ./test/... | grep -v -e /test/e2e$$ $(if $(ROOT),,-e /test/realnodes$$))
	@$(if $(ROOT),:,echo left out for want of root: $$(grep -hoE '^func Test[A-Z]\w*' test/realnodes/*_test.go | cut -c6-))

e2e-most:
	$(E2E) -test.skip '^($(LONG_TESTS))$$'
e2e-long:
	$(E2E) -test.run '^($(LONG_TESTS))$$'
e2e-wireguard: export KUBELINK_MODE := wireguard
e2e-wireguard:
	$(E2E) -test.run '^($(WIREGUARD_TESTS))$$'

matrix: system build controlplane image ## as root: all tests in both modes of links, and all combinations on real nodes
	for mode in bridge wireguard; do KUBELINK_MODE=$$mode go test -timeout 60m ./test/e2e || exit 1; done
	KUBELINK_MATRIX=all go test -timeout 40m -run 'TestMatrix|TestRealNodes' -v ./test/realnodes

bench: system build controlplane ## measure
	go test -run '^$$' -bench . -benchmem ./broker/...
	go run ./test/bench $(ARGS)

fuzz: ## every fuzz target for FUZZTIME (default 5m)
	@set -e; grep -rlE '^func Fuzz' --include '*_test.go' . | while read f; do \
	  for t in $$(grep -oE '^func Fuzz[A-Za-z0-9]+' $$f | cut -c6-); do \
	    echo "== $$t ($$(dirname $$f))"; go test -run '^$$' -fuzz "^$$t\$$" -fuzztime $(FUZZTIME) $$(dirname $$f); done; done

generate: ## deepcopy functions and CRDs from the API types
	go run $(CONTROLLER_GEN) object crd:crdVersions=v1 paths=./broker/api/... output:crd:dir=deploy/crds

lint: ## go vet, linters, and that generated files are up to date
	go vet ./...
	go run $(GOLANGCI_LINT) run ./...
	$(MAKE) generate
	git diff --exit-code -- broker/api deploy/crds

# Commands that tests and demo need, and their Debian packages. As root on Debian, make installs missing packages; otherwise
# it names them. The tests run unbound in namespaces of their own: the service in its package must not make this machine
# a name server. Of prometheus they need promtool only: its service does not run either, and what it recommends stays away.
COMMANDS := iptables:iptables nft:nftables ip:iproute2 sysctl:procps nsenter:util-linux dig:bind9-dnsutils unbound:unbound \
  openssl:openssl curl:curl \
  wg:wireguard-tools runc:runc dpkg-deb:dpkg promtool:prometheus $(if $(ROOT),/usr/lib/cni/bridge:containernetworking-plugins)
bench: COMMANDS += dnsperf:dnsperf
system:
	@missing=; for c in $(COMMANDS); do \
	  command -v $${c%%:*} >/dev/null || missing="$$missing $${c##*:}"; done; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    policy=/usr/sbin/policy-rc.d; \
	    if [ ! -e $$policy ]; then printf '#!/bin/sh\nexit 101\n' >$$policy; chmod +x $$policy; trap "rm -f $$policy" EXIT; fi; \
	    apt-get update -qq || exit 1; \
	    for p in $$missing; do \
	      only=; case $$p in prometheus) only=--no-install-recommends;; esac; \
	      DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $$only $$p || exit 1; \
	      case $$p in unbound|prometheus) ! command -v systemctl >/dev/null || systemctl disable -q $$p;; esac; \
	    done; \
	  else echo "missing on this system:$$missing (names of Debian packages); install them and try again" >&2; exit 1; fi; fi
