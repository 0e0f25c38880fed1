# The one test command is `make test`; .ci/run calls it.

SHELL := /bin/bash
CARGO ?= cargo
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: test lint deny spec prove build clean tools

## Everything that must hold before a commit: format, lints, licences, documentation, tests.
test: lint deny spec

lint:
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked --quiet

## Bans, licences and sources of every dependency. Advisories need the network and are left to
## the public workflow.
deny: tools
	$(CARGO) deny --locked --log-level error check bans licenses sources

spec:
	$(CARGO) test --locked

## The promises for ten thousand seeds; one that fails is printed and replayed by
## CHAT_GATEWAY_SEED=N cargo test --test spec promises
prove:
	CHAT_GATEWAY_SEEDS=10000 $(CARGO) test --locked --test spec promises -- --nocapture

build:
	$(CARGO) build --release --locked

## What the tests need beside Rust.
tools:
	@command -v cc >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq gcc libc6-dev; }
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked --quiet cargo-deny

clean:
	$(CARGO) clean
