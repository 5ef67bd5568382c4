#!/usr/bin/env bash
# Makes sure that a docker daemon answers. Where there is none, root on Debian
# gets Debian's docker.io; where no service manager runs, the daemon is started
# here and goes on running.
#   hack/docker.sh          does that, and says nothing where docker answers
#   hack/docker.sh down     ends the daemon that was started here, and no other
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Of the machine, as the daemon is: not of a user or a checkout.
STATE=/var/lib/meshroute-docker
PIDFILE=$STATE/dockerd.pid
LOG=$STATE/dockerd.log
# dockerd and what it calls are not on everybody's PATH.
PATH=$PATH:/usr/sbin:/sbin

answers() { timeout 20 docker info >/dev/null 2>&1; }

# ours prints the process id of the daemon that was started here.
ours() {
  local pid
  pid=$(cat "$PIDFILE" 2>/dev/null) || return 1
  [[ $(cat "/proc/$pid/comm" 2>/dev/null) == dockerd ]] || return 1
  echo "$pid"
}

# lacks_sys_resource tells whether this machine withholds CAP_SYS_RESOURCE (bit
# 24) even from root. `docker run --privileged` asks for every capability there
# is, and runc refuses what it cannot give.
lacks_sys_resource() {
  local bound
  bound=$(awk '$1 == "CapBnd:" { print $2 }' /proc/self/status)
  ((!(0x$bound >> 24 & 1)))
}

start() {
  local options=(--pidfile "$PIDFILE") i
  mkdir -p "$STATE"
  exec {lock}>"$STATE/lock"
  flock "$lock"
  ! answers || return 0
  if lacks_sys_resource; then
    "$ROOT/hack/need.sh" jq
    # A copy, because the daemon outlives this checkout.
    install -m755 "$ROOT/hack/kind/runc-without-sys-resource" "$STATE/runc"
    options+=(--add-runtime "without-sys-resource=$STATE/runc" --default-runtime without-sys-resource)
    say "this machine withholds CAP_SYS_RESOURCE: docker gets a runc that does without"
  fi
  say "starting dockerd, which goes on running (its log is $LOG; \`hack/docker.sh down\` ends it)"
  setsid nohup dockerd "${options[@]}" </dev/null >>"$LOG" 2>&1 {lock}>&- &
  for ((i = 0; i < 120; i++)); do
    ! answers || return 0
    kill -0 $! 2>/dev/null || break
    sleep 0.5
  done
  tail -n 5 "$LOG" >&2
  fail "dockerd does not answer: its last words are above, all of them in $LOG"
}

up() {
  ! answers || return 0
  if [[ $(id -u) != 0 ]]; then
    command -v docker >/dev/null || fail "docker is missing: install and start it (Debian: apt-get install docker.io), or run this as root"
    fail "docker does not answer ($(timeout 20 docker info 2>&1 >/dev/null | tail -n 1)): start it, let this user speak to it (group docker), or run this as root"
  fi
  [[ -z ${DOCKER_HOST:-} ]] || fail "DOCKER_HOST is $DOCKER_HOST, and no docker answers there: start it, or unset DOCKER_HOST"
  "$ROOT/hack/need.sh" dockerd iptables flock
  # Since trixie the client is a package of its own.
  "$ROOT/hack/need.sh" docker
  if [[ -d /run/systemd/system ]]; then
    systemctl start docker >&2 || fail "the service docker does not start: \`journalctl -u docker\` says why"
    answers || fail "the service docker runs and does not answer: \`journalctl -u docker\` says why"
  else
    start
  fi
}

down() {
  local pid i
  pid=$(ours) || {
    say "no dockerd was started here"
    return 0
  }
  kill "$pid"
  for ((i = 0; i < 60; i++)); do
    kill -0 "$pid" 2>/dev/null || {
      say "dockerd has ended"
      return 0
    }
    sleep 0.5
  done
  fail "dockerd (process $pid) does not end: $LOG may say why"
}

case ${1:-up} in
up | down) "${1:-up}" ;;
*) fail "usage: hack/docker.sh [up|down]" ;;
esac
