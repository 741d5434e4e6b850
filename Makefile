# `make` lists the targets.
.DEFAULT_GOAL := help
TARGET := x86_64-unknown-linux-gnu
PREFIX ?= $(HOME)/.local

.PHONY: help setup build demo test check unit e2e openapi ui-test test-vm deny bench install reference dist dist-check deb clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: ## install what building, testing and the demo need (apt as root or with sudo)
	@tests/setup.sh test

build: ## build the static executable bin/rootlet
	@tests/setup.sh build
	cargo build --release --locked -p rootlet
	@mkdir -p bin
	@cp --remove-destination target/$(TARGET)/release/rootlet bin/rootlet
	@file bin/rootlet | grep -q -e 'statically linked' -e 'static-pie linked' || { echo 'bin/rootlet is not static'; exit 1; }
	@ls -l bin/rootlet | awk '{print "bin/rootlet:", $$5, "bytes"}'

demo: build ## a pod from an image, running, its log shown, then cleaned up
	@tests/demo.sh

check: ## format, lints, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo deny --locked check bans licenses sources

unit: ## unit tests
	cargo nextest run --workspace --locked -E 'not (package(e2e) & kind(test))'

e2e: ## end-to-end tests of the real binary with the real kubectl
	tests/e2e.sh

openapi: ## what the served OpenAPI allows and does not, for two minutes; the Python client
	tests/openapi.sh 120

ui-test: ## the page of rootlet ui in a headless Chromium
	tests/ui.sh

test: setup ## everything CI runs
	$(MAKE) check
	$(MAKE) unit
	$(MAKE) e2e
	$(MAKE) openapi
	$(MAKE) ui-test

test-vm: ## limits of pods, in a virtual machine with systemd and cgroup v2
	tests/vm.sh

FUZZ_SECONDS ?= 30
fuzz: ## the parsers of foreign bytes against libFuzzer, FUZZ_SECONDS (30) for each
	tests/fuzz.sh $(FUZZ_SECONDS)

bench: build ## speed, side by side with podman, skopeo and umoci, crun, the stock loops, and pasta and others for the network
	@tests/setup.sh test
	tests/bench.sh
	tests/bench-images.sh
	tests/bench-loops.sh
	tests/bench-api.sh
	tests/bench-network.sh

install: build ## copy bin/rootlet to $(PREFIX)/bin, with manual pages and the shells' completions
	install -D -m 755 bin/rootlet $(PREFIX)/bin/rootlet
	bin/rootlet man $(PREFIX)/share/man/man1
	@mkdir -p $(PREFIX)/share/bash-completion/completions
	bin/rootlet completions bash > $(PREFIX)/share/bash-completion/completions/rootlet
	@mkdir -p $(PREFIX)/share/zsh/site-functions $(PREFIX)/share/fish/vendor_completions.d
	bin/rootlet completions zsh > $(PREFIX)/share/zsh/site-functions/_rootlet
	bin/rootlet completions fish > $(PREFIX)/share/fish/vendor_completions.d/rootlet.fish

reference: ## write docs/reference.md from what the command line says
	@cargo run -q --locked -p rootlet -- man --markdown > docs/.reference.md
	@mv docs/.reference.md docs/reference.md

dist: ## a release in dist/: archive, Debian package, list of parts, checksums
	.ci/dist.sh

dist-check: ## build the release twice, in two places, and compare the bytes
	DIST_TARGET=$(CURDIR)/target/dist-1 .ci/dist.sh '' dist/1 >/dev/null
	DIST_TARGET=$(CURDIR)/target/dist-2 .ci/dist.sh '' dist/2 >/dev/null
	diff -r dist/1 dist/2 && echo 'the same bytes'

deb: dist ## the Debian package, in dist/
	@ls dist/*.deb
