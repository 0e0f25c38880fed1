#!/usr/bin/env bash
# Builds the image as deploy/Dockerfile says, with its build stage replaced by a static binary that is
# built here, and runs it as Kubernetes would: read-only, without capabilities, not as root.
set -euo pipefail
cd "$(dirname "$0")/../.."

target="$(uname -m)-unknown-linux-gnu"
work="$(mktemp -d)"
name="chat-gateway-test-$$"
export CONTAINERS_CONF="$work/containers.conf"
finish() {
    podman rm --force --ignore "$name" "$name-api" "$name-full" >/dev/null 2>&1 || true
    podman rmi --force "$name" >/dev/null 2>&1 || true
    rm -rf "$work"
}
trap finish EXIT
fail() {
    echo "image: $*" >&2
    podman logs "$name" 2>&1 | tail -n 20 >&2 || true
    exit 1
}

# runc without systemd, so that it also works inside a container.
cat >"$CONTAINERS_CONF" <<'CONF'
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
CONF

RUSTFLAGS="-C target-feature=+crt-static" cargo build --quiet --release --locked --bin chat-gateway --target "$target"
install -D "${CARGO_TARGET_DIR:-target}/$target/release/chat-gateway" "$work/build/dist/usr/bin/chat-gateway"
install -D -m 0644 config/standalone.toml "$work/build/dist/etc/chat-gateway/gateway.toml"
buildah build --quiet --isolation chroot --build-context "build=$work/build" -t "$name" -f deploy/Dockerfile . >/dev/null

size="$(podman image inspect --format '{{.Size}}' "$name")"
((size > 1000000)) || fail "the image has $size bytes: the binary is not in it"
((size < 15000000)) || fail "the image has $size bytes, more than 15 MB"
user="$(podman image inspect --format '{{.User}}' "$name")"
[[ "$user" == 65532:65532 ]] || fail "it runs as ${user:-root}"

as_in_kubernetes=(--read-only --read-only-tmpfs=false --cap-drop all --security-opt no-new-privileges --user 65532:65532 --network host)
podman run --rm "${as_in_kubernetes[@]}" "$name" --version | grep -q '^chat-gateway ' || fail "it does not start"
podman run --rm "${as_in_kubernetes[@]}" "$name" check --config /etc/chat-gateway/gateway.toml >"$work/effective" ||
    fail "its settings are wrong"

# The stand-in comes from the same image.
podman run --detach --name "$name-api" "${as_in_kubernetes[@]}" "$name" simulate --listen 127.0.0.1:0 >/dev/null
for _ in {1..100}; do
    api="$(podman logs "$name-api" 2>&1 | grep -oE '127\.0\.0\.1:[0-9]+' | head -n 1 || true)"
    [[ -n "$api" ]] && break
    sleep 0.1
done
[[ -n "$api" ]] || fail "the simulator does not say where it listens"

# By name, so that the static binary has to resolve it.
podman run --detach --name "$name" "${as_in_kubernetes[@]}" "$name" serve --config /etc/chat-gateway/gateway.toml \
    --set listen.traffic=127.0.0.1:0 --set listen.admin=127.0.0.1:0 --set "upstream.url=http://localhost:${api##*:}" >/dev/null
for _ in {1..100}; do
    ready="$(podman logs "$name" 2>&1 | grep 'is ready' || true)"
    [[ -n "$ready" ]] && break
    sleep 0.1
done
address() { sed -E "s/.*\"$1\":\"([^\"]+)\".*/\\1/" <<<"$ready"; }
traffic="$(address traffic)"
admin="$(address admin)"
[[ "$(curl -s --max-time 5 "http://$admin/readyz")" == ready ]] || fail "/readyz does not answer"
answer="$(curl -s --max-time 10 "http://$traffic/v4/group_open_http_svc/modify_group_attr?sdkappid=88888888&identifier=administrator&usersig=xxx" \
    -d '{"GroupId":"@TGS#room","GroupAttr":[{"key":"topic","value":"rust"}]}')"
[[ "$answer" == *'"ActionStatus":"OK"'* ]] || fail "a call is answered with: $answer"

podman stop --time 40 "$name" >/dev/null
code="$(podman inspect --format '{{.State.ExitCode}}' "$name")"
[[ "$code" == 0 ]] || fail "SIGTERM ends it with $code"

# What the checks above rest on holds: a file cannot be written, which the gateway reports and survives.
podman run --detach --name "$name-full" "${as_in_kubernetes[@]}" "$name" serve --config /etc/chat-gateway/gateway.toml \
    --set listen.traffic=127.0.0.1:0 --set listen.admin=127.0.0.1:0 --set state.file=/windows >/dev/null
for _ in {1..100}; do
    refused="$(podman logs "$name-full" 2>&1 | grep -i 'read-only\|denied' || true)"
    [[ -n "$refused" ]] && break
    sleep 0.1
done
[[ -n "$refused" ]] || fail "its file system can be written to"
echo "image: $((size / 1000)) kB, user $user, serves, drains, exit code $code"
