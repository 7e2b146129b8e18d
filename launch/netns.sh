#!/usr/bin/env bash
# A Ray cluster of several hosts on one Linux machine: each host is a network namespace with an address, a cable (veth) to
# a switch (bridge), and Ray of its own. Needs root and iproute2; nothing outside the namespaces is touched.
#
#   launch/netns.sh up [N]            hosts 1 to N (3): Ray's head on host 1, a worker on each of the others
#   launch/netns.sh exec HOST CMD...  run a command on a host
#   launch/netns.sh cut HOST          pull its cable;  heal HOST: put it back
#   launch/netns.sh kill HOST         end Ray on it at once;  start HOST: start it (again)
#   launch/netns.sh show              hosts, and whether Ray runs on them
#   launch/netns.sh down              end all, and remove hosts and switch
#
# Then, from this machine:  lpo-ray submit configs/quickstart.yaml --address "$(launch/netns.sh address)" --follow
# Host 1 carries the label lpo-ray/role=learner, the others lpo-ray/role=rollout.
set -euo pipefail

NET=${LPO_RAY_NETNS:-lpo}          # prefix of all names, so that several clusters can be up at once
SUBNET=${LPO_RAY_SUBNET:-10.77.0}  # the switch is .1, host N is .(N+1)
CPUS=${LPO_RAY_CPUS:-4}            # that each host announces
STATE=${LPO_RAY_STATE:-/tmp/lpo-ray-$NET}
RAY=${RAY:-ray}
ROLE_KEY=lpo-ray/role

export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=${RAY_AUTH_TOKEN_PATH:-$STATE/token}
export RAY_USAGE_STATS_ENABLED=0 RAY_worker_niceness=0
# A host without a cable is found after some seconds instead of Ray's 40.
export RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=2000 RAY_health_check_failure_threshold=4

die() { echo "netns.sh: $*" >&2; exit 2; }
ns() { echo "$NET$1"; }
ip_of() { echo "$SUBNET.$(($1 + 1))"; }
hosts() { for file in "$STATE"/*.host; do [ -e "$file" ] && basename "$file" .host; done; }
known() { [ -e "$STATE/$1.host" ] || die "there is no host '$1'; expected one of: $(hosts | tr '\n' ' ')"; }

check() {
    [ "$(id -u)" = 0 ] || die "needs root: network namespaces cannot be made without it"
    command -v ip >/dev/null || die "needs 'ip': apt-get install iproute2"
    command -v "$RAY" >/dev/null || die "needs 'ray' on PATH (set RAY, or activate .venv)"
}

add_host() {
    local name cable
    name=$(ns "$1") cable="$NET-$1"
    ip netns add "$name"
    ip link add "$cable" type veth peer name eth0 netns "$name"
    ip link set "$cable" master "$NET-switch" up
    ip -n "$name" addr add "$(ip_of "$1")/24" dev eth0
    ip -n "$name" link set eth0 up
    ip -n "$name" link set lo up
    : > "$STATE/$1.host"
}

start() {
    known "$1"
    alive "$1" && die "Ray runs on host $1 already"
    local role=rollout
    local -a what=(--address="$(ip_of 1):6379")
    if [ "$1" = 1 ]; then
        role=learner
        what=(--head --port=6379 --dashboard-host="$(ip_of 1)" --dashboard-port=8265)
    fi
    setsid ip netns exec "$(ns "$1")" "$RAY" start --block --node-ip-address="$(ip_of "$1")" --num-cpus="$CPUS" \
        --labels="$ROLE_KEY=$role" --object-store-memory=200000000 "${what[@]}" \
        > "$STATE/$1.log" 2>&1 < /dev/null &
}

# Every process of a host, by the namespace that it is in, until none is left: what is killed takes a moment to end, and
# may have started another meanwhile.
kill_host() {
    known "$1"
    local pids
    for _ in $(seq 100); do
        pids=$(ip netns pids "$(ns "$1")") || true
        [ -n "$pids" ] || return 0
        # shellcheck disable=SC2086 # one word for each process
        kill -9 $pids 2>/dev/null || true
        sleep 0.1
    done
    die "host $1 has processes that do not end: $pids"
}

alive() { [ -n "$(ip netns pids "$(ns "$1")" 2>/dev/null)" ]; }

wait_for_head() {
    local second
    for second in $(seq 60); do
        (exec 3<> "/dev/tcp/$(ip_of 1)/8265") 2>/dev/null && return
        alive 1 || die "Ray's head did not start: $(tail -n 5 "$STATE/1.log")"
        sleep 1
    done
    die "Ray's head did not answer within $second s: see $STATE/1.log"
}

wait_for_nodes() {
    for _ in $(seq 60); do
        [ "$(ip netns exec "$(ns 1)" "$RAY" status 2>/dev/null | grep -c ' node_')" = "$1" ] && return
        sleep 1
    done
    die "host $1 has not joined: $(tail -n 3 "$STATE/$1.log")"
}

up() {
    local count=${1:-3} host
    [[ "$count" =~ ^[1-9]$ ]] || die "up $count: expected 1 to 9 hosts"
    [ -z "$(hosts)" ] || die "$STATE has hosts already: launch/netns.sh down"
    mkdir -p "$STATE"
    [ -e "$RAY_AUTH_TOKEN_PATH" ] || (umask 077 && head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$RAY_AUTH_TOKEN_PATH")
    ip link add "$NET-switch" type bridge
    ip addr add "$SUBNET.1/24" dev "$NET-switch"
    ip link set "$NET-switch" up
    for host in $(seq "$count"); do add_host "$host"; done
    start 1
    wait_for_head
    # One after the other: they share a file system, and two that begin at once take the same names in it.
    for host in $(seq 2 "$count"); do
        start "$host"
        wait_for_nodes "$host"
    done
    echo "http://$(ip_of 1):8265  (RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$RAY_AUTH_TOKEN_PATH)"
}

down() {
    local host
    for host in $(hosts); do
        (kill_host "$host") || true
        ip netns del "$(ns "$host")" 2>/dev/null || true
        ip link del "$NET-$host" 2>/dev/null || true
    done
    ip link del "$NET-switch" 2>/dev/null || true
    rm -rf "$STATE"
}

check
case "${1:-}" in
    up) up "${2:-3}" ;;
    down) down ;;
    start) start "${2:?host}" ;;
    kill) kill_host "${2:?host}" ;;
    cut) known "${2:?host}" && ip link set "$NET-$2" down ;;
    heal) known "${2:?host}" && ip link set "$NET-$2" up ;;
    exec) known "${2:?host}" && exec ip netns exec "$(ns "$2")" "${@:3}" ;;
    address) echo "http://$(ip_of 1):8265" ;;
    show) for host in $(hosts); do echo "host $host  $(ip_of "$host")  $(alive "$host" && echo up || echo down)"; done ;;
    *) sed -n '2,14p' "$0" | sed 's/^# \{0,1\}//'; exit 2 ;;
esac
