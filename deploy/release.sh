#!/usr/bin/env bash
# Builds the gateway as it is shipped: its code is laid out by which ways it took in a training run of a minute
# (https://doc.rust-lang.org/rustc/profile-guided-optimization.html), which saves an eighth of a call's CPU.
#
#   deploy/release.sh FILE
#
# leaves the binary in FILE: a quarter of an hour on two cores. Wants two of them, rustup's llvm-tools, which it
# installs, and redis-server for the part about shared windows. RUSTFLAGS are kept. TRAINED=no leaves the training
# out and takes a third of the time: for trials.
set -euo pipefail
cd "$(dirname "$0")/.."
output="${1:?where to}"

# A target of its own keeps build scripts and macros, which run on the host, out of the profile.
target="$(uname -m)-unknown-linux-gnu"
flags="${RUSTFLAGS:-}"
unset RUSTFLAGS
export CARGO_INCREMENTAL=0

mkdir -p target
work="$(mktemp -d "$PWD/target/release.XXXXXX")"
trap 'rm -rf "$work"' EXIT
gateway() {
    RUSTFLAGS="$flags $1" cargo build --quiet --release --locked --bin chat-gateway --target "$target" --target-dir "$work/$2"
}
ship() {
    install -D "$work/shipped/$target/release/chat-gateway" "$output"
}

if [ "${TRAINED:-yes}" = no ]; then
    gateway "" shipped
    ship
    exit
fi

profdata="$(rustc --print target-libdir)/../bin/llvm-profdata"
if [ ! -x "$profdata" ] && ! rustup component add llvm-tools >&2; then
    profdata="$(command -v llvm-profdata)" || {
        echo "release: no llvm-profdata: it comes with \`rustup component add llvm-tools\`, or with the LLVM of this rustc" >&2
        exit 1
    }
fi

echo "release: one that counts" >&2
gateway "-Cprofile-generate=$work/counts" counting
echo "release: its training" >&2
LLVM_PROFILE_FILE="$work/counts/%p.profraw" cargo run --quiet --release --locked --manifest-path benches/Cargo.toml \
    --target-dir target/benches --bin proxy -- \
    train --gateway "$work/counting/$target/release/chat-gateway" --benches benches
# What was killed, as the stand-in for the API, has counted nothing.
find "$work/counts" -name '*.profraw' -empty -delete
"$profdata" merge --output "$work/calls.profdata" "$work/counts"
rm -rf "$work/counting"
echo "release: the one that is shipped" >&2
gateway "-Cprofile-use=$work/calls.profdata" shipped
ship
