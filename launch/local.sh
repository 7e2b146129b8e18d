#!/usr/bin/env bash
# One job on a Ray cluster of this machine: start a head, submit, follow, stop the head by its own process id.
#   launch/local.sh CONFIG [section.key=value ...]
# Ports, folder and token are this head's own, so it runs beside other clusters. RAY_NUM_CPUS: how many roles may run at
# once, by default 8 or the number of cores if there are more: stages of a synchronous run take turns.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PATH="$here/.venv/bin:$PATH"
START_SECONDS=60
STOP_SECONDS=40 # Ray waits for its own processes for up to 30

fail() {
    echo "local.sh: $1" >&2
    exit 2
}

[[ $# -gt 0 ]] || fail "no CONFIG was given; expected launch/local.sh CONFIG [section.key=value ...]"
[[ -f "$1" ]] || fail "config file '$1' does not exist; expected a YAML file, as in configs/quickstart.yaml"
for tool in ray lpo-ray; do
    command -v "$tool" >/dev/null || fail "'$tool' is not on PATH; run: make -C $here setup"
done
[[ ! "$here" =~ [[:space:]] ]] || fail "'$here' has white space in it, which Ray does not take; move this folder"
config="$1"
shift

work="$(mktemp -d /tmp/lpo-local-XXXXXX)" # short: paths of Unix sockets may have 107 characters
head="" job=""

stop() {
    local status=$?
    trap - EXIT
    if [[ -n "$job" ]]; then kill -TERM "$job" 2>/dev/null || true; fi
    if [[ -n "$head" ]] && kill -TERM "$head" 2>/dev/null; then
        for ((second = 0; second < STOP_SECONDS; second++)); do
            kill -0 "$head" 2>/dev/null || break
            sleep 1
        done
        kill -KILL "$head" 2>/dev/null || true
    fi
    rm -f "$work/token"
    if ((status)); then
        echo "local.sh: exit code $status; the head's own logs are in $work" >&2
    else
        rm -rf "$work"
    fi
    exit "$status"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

unset RAY_ADDRESS RAY_AUTH_TOKEN
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$work/token" RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
(umask 077 && python3 -c 'import secrets; print(secrets.token_hex(32), end="")' >"$RAY_AUTH_TOKEN_PATH")
read -r port dashboard agent client < <(python3 - <<'PYTHON'
import socket

sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(s.getsockname()[1] for s in sockets))
PYTHON
)

cores="$(nproc)"
ray start --head --block --port "$port" --dashboard-host 127.0.0.1 --dashboard-port "$dashboard" \
    --dashboard-agent-listen-port "$agent" --ray-client-server-port "$client" --temp-dir "$work/ray" \
    --num-cpus "${RAY_NUM_CPUS:-$((cores > 8 ? cores : 8))}" >"$work/head.log" 2>&1 &
head=$!

answers() {
    python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)' "$1" 2>/dev/null
}

# Both: the dashboard answers before the node is complete, and a node that is not complete takes a signal badly.
url="http://127.0.0.1:$dashboard"
deadline=$((SECONDS + START_SECONDS))
until grep -q "Ray runtime started" "$work/head.log" && answers "$url/api/gcs_healthz"; do
    if ! kill -0 "$head" 2>/dev/null || ((SECONDS >= deadline)); then
        tail -n 5 "$work/head.log" >&2
        echo "local.sh: the head did not answer at $url within $START_SECONDS s; its last lines are above" >&2
        exit 1
    fi
    sleep 0.5
done

# In the background, so that a signal is acted on at once and not when the job ends.
lpo-ray submit "$config" "$@" --address "$url" --follow &
job=$!
wait "$job"
