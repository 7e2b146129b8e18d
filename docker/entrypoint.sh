#!/usr/bin/env bash
# What a container is: `head` or `worker`, a Ray node that ends with the container, or any other command.
#   both    LPO_RAY_ROLE            learner | rollout | verifier: the node's label lpo-ray/role; unset: no label
#           RAY_NUM_CPUS, RAY_NUM_GPUS   what Ray may place here; unset: what it finds
#           RAY_AUTH_TOKEN_PATH     file with the cluster's token; unset: ~/.ray/auth_token
#           RAY_OBJECT_STORE_BYTES  size of Ray's object store; unset: what fits into /dev/shm
#   head    RAY_PORT                6379
#           RAY_DASHBOARD_HOST      127.0.0.1; behind a published port it must be 0.0.0.0
#           RAY_DASHBOARD_PORT      8265
#   worker  RAY_HEAD                host:port of the head
#           RAY_HEAD_SECONDS        300: how long to wait for it, and for a node that starts slowly
set -euo pipefail

fail() {
    echo "entrypoint: $1" >&2
    exit 2
}

require_token() {
    export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
    if [[ "$RAY_AUTH_MODE" != token || -n "${RAY_AUTH_TOKEN:-}" ]]; then return; fi
    local path="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
    [[ -r "$path" ]] || fail "the token file $path is missing or cannot be read by user $(id -u); expected a file of \
mode 600 that belongs to this user, mounted there"
    [[ -s "$path" ]] || fail "the token file $path is empty; expected the cluster's token, as from: openssl rand -hex 32"
}

wait_for_head() {
    local host="${1%:*}" port="${1##*:}" seconds="${RAY_HEAD_SECONDS:-300}"
    [[ "$1" == *:* && "$port" =~ ^[0-9]+$ ]] || fail "RAY_HEAD is '$1'; expected HOST:PORT, as in head:6379"
    local deadline=$((SECONDS + seconds))
    # shellcheck disable=SC2016 # the inner shell expands these
    until timeout 2 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$host" "$port" 2>/dev/null; do
        ((SECONDS < deadline)) || fail "no head answered at $1 for $seconds s; check that it runs and RAY_HEAD"
        sleep 1
    done
}

# A user without a home of its own, or with one that is read-only, as under `docker run --user` and on OpenShift.
if [[ ! -w "${HOME:-/}" ]]; then
    if [[ -r "${HOME:-/}/.ray/auth_token" ]]; then
        export RAY_AUTH_TOKEN_PATH="${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}"
    fi
    old="${HOME:-unset}"
    HOME="$(mktemp -d 2>/dev/null)" || fail "neither HOME ($old) nor /tmp can be written by user $(id -u); expected \
one of them: -e HOME=... or --tmpfs /tmp"
    export HOME
fi
# What GPU engines compile is kept there, by a user who may write there.
if [[ -n "${VLLM_CACHE_ROOT:-}" ]] && ! mkdir -p "$VLLM_CACHE_ROOT" 2>/dev/null; then
    unset VLLM_CACHE_ROOT FLASHINFER_WORKSPACE_BASE TRITON_CACHE_DIR TORCHINDUCTOR_CACHE_DIR CUDA_CACHE_PATH
fi
# Every connection between Ray's processes takes a descriptor.
if [[ "$(ulimit -Sn)" != unlimited ]] && (($(ulimit -Sn) < 65536)); then
    ulimit -Sn 65536 2>/dev/null || ulimit -Sn "$(ulimit -Hn)"
fi

# Ray takes 30 % of the machine's memory, whatever a container's /dev/shm holds, and then keeps objects in /tmp.
object_store() {
    local shared memory
    if [[ -n "${RAY_OBJECT_STORE_BYTES:-}" ]]; then
        echo "$RAY_OBJECT_STORE_BYTES"
        return
    fi
    shared="$(df --output=size -B1 /dev/shm | tail -n 1)"
    memory=$((1024 * $(sed -n 's/^MemTotal: *\([0-9]*\) kB$/\1/p' /proc/meminfo)))
    if ((shared * 8 / 10 < memory * 3 / 10 && shared >= 128 * 1024 * 1024)); then echo $((shared * 8 / 10)); fi
}

node=(--block)
if [[ -n "${RAY_NUM_CPUS:-}" ]]; then node+=(--num-cpus "$RAY_NUM_CPUS"); fi
if [[ -n "${RAY_NUM_GPUS:-}" ]]; then node+=(--num-gpus "$RAY_NUM_GPUS"); fi
case "${LPO_RAY_ROLE:-}" in
    "") ;;
    learner | rollout | verifier) node+=(--labels "lpo-ray/role=$LPO_RAY_ROLE") ;;
    *) fail "LPO_RAY_ROLE is '$LPO_RAY_ROLE'; expected learner, rollout or verifier, or nothing" ;;
esac

case "${1:-}" in
    head | worker)
        bytes="$(object_store)"
        if [[ -n "$bytes" ]]; then node+=(--object-store-memory "$bytes"); fi
        ;;
esac

# Ray gives a node 30 s to register, which no setting changes and a busy machine exceeds: such a start is made again. What
# ends in any other way ends the container.
start_node() {
    local said status child="" stopped=""
    said="$(mktemp)"
    trap 'stopped=yes; if [[ -n "$child" ]]; then kill -TERM "$child" 2>/dev/null || true; fi' TERM INT
    while [[ -z "$stopped" ]]; do
        ray start "$@" 2> >(tee "$said" >&2) &
        child=$!
        status=0
        wait "$child" || status=$?
        while kill -0 "$child" 2>/dev/null; do # a signal ended the wait
            status=0
            wait "$child" || status=$?
        done
        if ((status == 0 || SECONDS >= ${RAY_HEAD_SECONDS:-300})) || [[ -n "$stopped" ]]; then break; fi
        sleep 1 # until tee has written the last words, and what was begun has ended
        if ! grep -q "timed out during startup" "$said"; then break; fi
        echo "entrypoint: Ray gave up the start of this node after 30 s; it is started again" >&2
    done
    exit "$status"
}

case "${1:-}" in
    head)
        require_token
        start_node --head "${node[@]}" --port "${RAY_PORT:-6379}" \
            --dashboard-host "${RAY_DASHBOARD_HOST:-127.0.0.1}" --dashboard-port "${RAY_DASHBOARD_PORT:-8265}"
        ;;
    worker)
        require_token
        wait_for_head "${RAY_HEAD:?is not set; expected HOST:PORT of the head}"
        start_node --address "$RAY_HEAD" "${node[@]}"
        ;;
    "") fail "no role was given; expected head, worker or a command, as in lpo-ray train configs/quickstart.yaml" ;;
    *) exec "$@" ;;
esac
