#!/usr/bin/env bash
# Exit code 0 when the Ray node of this container is well: `healthcheck.sh head` asks the head's global store through the
# dashboard and its raylet, `healthcheck.sh worker` the raylet. Ray answers these paths without a token.
set -euo pipefail

ask() {
    local answer
    answer="$(wget -q -T 4 -O - "http://127.0.0.1:$1/api/$2")" || { echo "no answer from port $1, /api/$2" >&2; exit 1; }
    [[ "$answer" == *success* ]] || { echo "port $1, /api/$2 answered: $answer" >&2; exit 1; }
}

case "${1:-}" in
    head) ask "${RAY_DASHBOARD_PORT:-8265}" gcs_healthz ;;
    worker) ;;
    *)
        echo "healthcheck: the role is '${1:-}'; expected head or worker" >&2
        exit 2
        ;;
esac
ask "${RAY_AGENT_PORT:-52365}" local_raylet_healthz
