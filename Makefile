# The one test command is `make test`; .ci/run calls it.

SHELL := /bin/bash
CARGO ?= cargo
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

.PHONY: test lint deny spec prove keys soak fuzz mutants build clean tools

## Everything that must hold before a commit: format, lints, licences, documentation, tests.
test: lint deny spec keys

lint:
	$(CARGO) fmt --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
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

## Half an hour of callers who come and go and an upstream that fails, under a ceiling of memory.
SOAK_MINUTES ?= 30
soak:
	SOAK_MINUTES=$(SOAK_MINUTES) $(CARGO) test --locked --test spec wear_nothing_out -- --nocapture

## A million keys in passing: nothing of them is left in memory.
KEYS ?= 1000000
keys:
	CHAT_GATEWAY_KEYS=$(KEYS) $(CARGO) test --locked --test spec keys_in_passing -- --nocapture

## Each fuzz target for so many seconds, from the corpus in fuzz/corpus; what it finds on the way
## is kept in target/fuzz. An input that fails is written to fuzz/artifacts: mend, then put it into
## the corpus, which every test run replays.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= body config query reply
fuzz: tools
	@command -v c++ >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq g++; }
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked --quiet cargo-fuzz
	@set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p target/fuzz/corpus/$$target; \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --target-dir target/fuzz $$target \
			target/fuzz/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1; \
	done

## Changes the deciding modules one place at a time; a change that no test notices fails. What is
## changed, and what is left out and why: .cargo/mutants.toml.
mutants: tools
	@$(CARGO) mutants --version >/dev/null 2>&1 || $(CARGO) install --locked --quiet cargo-mutants
	$(CARGO) mutants --output target

build:
	$(CARGO) build --release --locked

## What the tests need beside Rust.
tools:
	@command -v cc >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq gcc libc6-dev; }
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked --quiet cargo-deny

clean:
	$(CARGO) clean
