#!/usr/bin/env bash
# A Ray cluster of several nodes on this machine, to try what needs more than one: a lost worker, elastic training,
# data that crosses nodes.
#
#   cluster/local.sh up [nodes] [cpus of each]     two nodes of one CPU each, unless told otherwise
#   cluster/local.sh kill N                        ends node N at once, as a lost machine would (0 is the head)
#   cluster/local.sh down                          ends these nodes, and no other Ray on this machine
#
# All nodes share the machine's memory, disk and address: it measures nothing. Only one of them can have port 8000, so
# an endpoint here wants `proxy_location: HeadOnly`. Ports: RAY_PORT (6379), DASHBOARD_PORT (8265), CLIENT_PORT (10001).
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
state="$root/.local-cluster"
port=${RAY_PORT:-6379} dashboard=${DASHBOARD_PORT:-8265} client=${CLIENT_PORT:-10001}
export RAY_AUTH_MODE=${RAY_AUTH_MODE:-token} RAY_USAGE_STATS_ENABLED=${RAY_USAGE_STATS_ENABLED:-0}
PATH="$root/.venv/bin:$PATH"

fail() { echo "local.sh: $*" >&2; exit 2; }

start_node() {                      # start_node NAME ray-start-flags...
    local name=$1; shift
    # In a session of its own: Ctrl-C does not reach it, and `kill` can end all of its processes
    setsid ray start --block --num-cpus="$cpus" "$@" >"$state/$name.log" 2>&1 </dev/null &
    local pid=$!
    echo "$pid" >"$state/$name.pid"
    for _ in $(seq 360); do
        grep -q "Ray runtime started" "$state/$name.log" && return
        kill -0 "$pid" 2>/dev/null || { tail -n 3 "$state/$name.log" >&2; return 1; }
        sleep 0.5
    done
    echo "node $name did not start within three minutes" >&2
    return 1
}

up() {
    local nodes=${1:-2}; cpus=${2:-1}
    [ ! -e "$state" ] || fail "already up, or not ended: cluster/local.sh down first"
    mkdir -p "$state"
    trap 'down; fail "could not start"' ERR
    # A short path: the names of Unix sockets below it may have 107 characters
    mktemp -d /tmp/mapsto-ray-XXXXXX >"$state/folder"
    [ "$RAY_AUTH_MODE" != token ] || ray get-auth-token --generate >/dev/null 2>&1
    start_node 0 --head --port="$port" --dashboard-host=127.0.0.1 --dashboard-port="$dashboard" \
        --ray-client-server-port="$client" --temp-dir="$(cat "$state/folder")"
    for node in $(seq 1 $((nodes - 1))); do
        start_node "$node" --address="127.0.0.1:$port"
    done
    trap - ERR
    echo "$nodes nodes of $cpus CPUs, dashboard http://127.0.0.1:$dashboard"
    echo "export RAY_AUTH_MODE=$RAY_AUTH_MODE RAY_ADDRESS=http://127.0.0.1:$dashboard"
}

kill_node() {
    [ -e "$state/$1.pid" ] || fail "no node $1"
    kill -KILL -- "-$(cat "$state/$1.pid")"
    rm "$state/$1.pid"
}

down() {
    [ -d "$state" ] || return 0
    local pids; pids=$(cat "$state"/*.pid 2>/dev/null || true)
    for pid in $pids; do kill -TERM "$pid" 2>/dev/null || true; done
    for pid in $pids; do            # Ray drains a node for up to 30 seconds
        for _ in $(seq 90); do kill -0 "$pid" 2>/dev/null || break; sleep 0.5; done
        kill -KILL -- "-$pid" 2>/dev/null || true
    done
    [ ! -s "$state/folder" ] || rm -rf "$(cat "$state/folder")"
    rm -rf "$state"
}

case ${1:-} in
    up) shift; up "$@" ;;
    kill) kill_node "${2:?which node}" ;;
    down) down ;;
    *) sed -n '2,11s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
