#!/usr/bin/env bash
# The monitoring sample on this machine, without a cluster: a gateway on :8888
# in front of Prometheus, Grafana and InfluxDB, as `make demo` runs it.
#   hack/demo.sh up      gets what is missing, starts what does not run, shows it
#   hack/demo.sh down    ends what `up` started, and nothing else
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

DEMO=$ROOT/hack/demo
STATE=${XDG_STATE_HOME:-$HOME/.local/state}/meshroute-demo
[[ $STATE == /* ]] || STATE=$PWD/$STATE
YAML=$STATE/yaml
LOGS=$STATE/logs
GATEWAY=$STATE/gateway
TABLE=$LOGS/table.log

# In the order in which they start; they end in the reverse one.
NAMES=(prometheus influxdb grafana readiness gateway)
declare -A PORT=([prometheus]=9090 [influxdb]=8086 [grafana]=3000 [gateway]=8888)
URLS=(
  http://127.0.0.1:8888/health
  http://127.0.0.1:8888/nginx_status
  http://127.0.0.1:8888/api/prometheus/-/healthy
  http://127.0.0.1:8888/grafana/api/health
  http://127.0.0.1:8888/influxdb/ping
)

# --- time -------------------------------------------------------------------

# now prints milliseconds. EPOCHREALTIME has the locale's decimal sign.
now() {
  local time=${EPOCHREALTIME:-$(date +%s).000000}
  time=${time//[^0-9]/}
  echo "${time%???}"
}
BEGUN=$(now)
STEP=$BEGUN

seconds() { # seconds SINCE prints what has passed
  local passed=$(($(now) - $1))
  printf '%d.%d s' $((passed / 1000)) $((passed % 1000 / 100))
}

# step WHAT says what has been done, and how long that took.
step() {
  say "$(printf '%8s' "$(seconds "$STEP")")  $*"
  STEP=$(now)
}

# --- processes --------------------------------------------------------------

# born PID prints what tells this process from a later one with the same number;
# fails if there is none, or only what is left of one.
born() {
  local stat fields
  { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
  # The name, in parentheses, may hold anything.
  read -ra fields <<<"${stat##*) }"
  [[ ${fields[0]} != [ZX] ]] || return 1
  echo "${fields[19]}@$(</proc/sys/kernel/random/boot_id)"
}

# running NAME prints the pid of what `up` started under this name, if that
# still runs.
running() {
  local pid birth
  [[ -f $STATE/run/$1 ]] || return 1
  read -r pid birth <"$STATE/run/$1" || return 1
  [[ $(born "$pid") == "$birth" ]] || return 1
  echo "$pid"
}

# launch NAME OUTPUT COMMAND… runs a command in a session of its own, so that it
# outlives this script and its terminal, and holds nothing that is theirs: who
# waits for the end of a pipe would wait for the demo's.
launch() {
  local name=$1 output=$2 pid fd
  shift 2
  : >"$LOGS/$name.log"
  : >"$output"
  (
    cd "$STATE"
    for fd in /proc/self/fd/*; do
      fd=${fd##*/}
      ((fd <= 2)) || exec {fd}>&-
    done
    exec setsid "$@"
  ) </dev/null >>"$output" 2>>"$LOGS/$name.log" &
  pid=$!
  echo "$pid $(born "$pid" || true)" >"$STATE/run/$name"
}

finish() { # finish NAME ends it and waits for its end
  local name=$1 pid i
  pid=$(running "$name") || {
    rm -f "$STATE/run/$name"
    return 0
  }
  kill "$pid" 2>/dev/null || true
  for ((i = 0; i < 150; i++)); do
    running "$name" >/dev/null || break
    sleep 0.1
  done
  if running "$name" >/dev/null; then
    say "$name (pid $pid) has not ended within 15 s of being asked to, and is killed"
    kill -KILL "$pid" 2>/dev/null || true
    while running "$name" >/dev/null; do sleep 0.1; done
  fi
  rm -f "$STATE/run/$name"
}

finish_all() {
  local i
  for ((i = ${#NAMES[@]} - 1; i >= 0; i--)); do finish "${NAMES[i]}"; done
}

all_running() { # prints the names of what runs
  local name
  for name in "${NAMES[@]}"; do
    if running "$name" >/dev/null; then echo "$name"; fi
  done
}

# undo leaves nothing behind of a start that has failed or was interrupted.
undo() {
  set +e # nobody may be left who could read what is said
  trap - EXIT
  trap '' INT TERM HUP PIPE
  [[ -z $(all_running) ]] || say "stopping what was started"
  finish_all
}

# give_up NAME SENTENCE shows the last that a process said, and fails.
give_up() {
  local name=$1 file
  local files=("$LOGS/$name.log")
  [[ $name != gateway ]] || files=("$TABLE" "${files[@]}" "$GATEWAY"/*/agent.log "$GATEWAY"/*/envoy.log)
  for file in "${files[@]}"; do
    [[ -s $file ]] || continue
    say "--- the end of $file"
    tail -n 12 "$file" | cut -c1-400 >&2
  done
  say "---"
  fail "$2"
}

# await NAME SECONDS URL… waits until the URLs answer well.
await() {
  local name=$1 patience=$2 deadline=$((SECONDS + $2)) report each
  shift 2
  until report=$(python3 "$DEMO/probe.py" 1 "$@"); do
    for each in "${NAMES[@]}"; do
      [[ -f $STATE/run/$each ]] || continue
      running "$each" >/dev/null || give_up "$each" "$each has ended by itself: what it said is above"
    done
    ((SECONDS < deadline)) || {
      say "$report"
      give_up "$name" "$name does not answer well after $patience s: what it said is above"
    }
  done
}

# --- what gets run ----------------------------------------------------------

# debian_package PACKAGE PROGRAM NAME FOLDER unpacks a package into a folder.
# Nothing gets installed: no root is needed, no service starts by itself.
debian_package() {
  local package=$1 program=$2 name=$3 work=$4 remedy
  remedy="install $name so that \`$program\` is on the PATH, then run this again"
  if ! { command -v apt-get && command -v dpkg-deb; } >/dev/null; then
    fail "$program is missing, and only on Debian and its like it is fetched by itself: $remedy"
  fi
  say "fetching Debian's package $package, once (it is unpacked in the cache, not installed)"
  download() { (cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$package" >said 2>&1); }
  if ! download; then
    # A fresh machine may not have fetched its package lists yet, or long ago.
    [[ $(id -u) == 0 ]] ||
      fail "apt-get could not fetch the package $package ($(grep '^E:' "$work/said" | head -n 1)): have root run \`apt-get update\` and run this again, or $remedy"
    say "fetching the lists of Debian's packages"
    apt-get update -qq >&2 || true
    download || fail "apt-get could not fetch the package $package ($(grep '^E:' "$work/said" | head -n 1)): check that it reaches a package source, or $remedy"
  fi
  dpkg-deb -x "$work"/*.deb "$work" || fail "the package $package could not be unpacked: is the disk full?"
  rm -f "$work"/*.deb "$work/said"
  [[ -x $work/usr/bin/$program ]] || fail "the package $package has no program $program: $remedy"
}

# server PACKAGE PROGRAM NAME VERSION_ARGUMENT PATTERN prints the path of a
# server: the one on the PATH if what it says of itself matches the pattern,
# otherwise the one of Debian's package.
server() {
  local package=$1 program=$2 name=$3 argument=$4 pattern=$5 found release folder
  if found=$(command -v "$program"); then
    if [[ $("$found" "$argument" 2>&1) =~ $pattern ]]; then
      echo "$found"
      return
    fi
    say "$found is not used: it is no $name"
  fi
  # A program of one release may not run on another.
  release=$(sed -n 's/^\(ID\|VERSION_ID\|VERSION_CODENAME\)="\?\([a-z0-9.-]*\).*/\2/p' /etc/os-release 2>/dev/null | paste -sd-) || true
  folder=$CACHE/demo/$package-${release:-unknown}-$(uname -m)
  once "$folder" debian_package "$package" "$program" "$name"
  found=$folder/usr/bin/$program
  [[ $("$found" "$argument" 2>&1) =~ $pattern ]] ||
    fail "$found does not run here, or is no $name: install $name so that \`$program\` is on the PATH, then run this again"
  echo "$found"
}

start_prometheus() {
  local binary version
  binary=$(server prometheus prometheus Prometheus --version '^prometheus, version ')
  read -r _ _ version _ < <("$binary" --version 2>&1) || true
  launch prometheus "$LOGS/prometheus.log" "$binary" \
    --config.file="$DEMO/prometheus.yml" --storage.tsdb.path="$STATE/data/prometheus" \
    --web.listen-address=127.0.0.1:9090 --web.external-url=http://127.0.0.1:8888/api/prometheus/ --web.route-prefix=/
  step "Prometheus $version started"
}

start_influxdb() {
  local binary version data=$STATE/data/influxdb
  binary=$(server influxdb influxd "InfluxDB 1.x" version '^InfluxDB v1[.]')
  read -r _ version _ < <("$binary" version 2>&1) || true
  launch influxdb "$LOGS/influxdb.log" \
    env INFLUXDB_META_DIR="$data/meta" INFLUXDB_DATA_DIR="$data/data" INFLUXDB_DATA_WAL_DIR="$data/wal" \
    "$binary" -config "$DEMO/influxdb.conf"
  step "InfluxDB ${version#v} started"
}

start_grafana() {
  local binary='' home='' folder why
  local run=()
  if binary=$(command -v grafana); then
    run=("$binary" server)
  elif binary=$(command -v grafana-server); then
    run=("$binary")
  fi
  why="there is no grafana on the PATH"
  if [[ -n $binary ]]; then
    why="$binary is there, but not its home folder, which GF_PATHS_HOME may name"
    for folder in "${GF_PATHS_HOME:-}" "$(dirname "$(realpath "$binary")")/.." /usr/share/grafana /usr/local/share/grafana; do
      if [[ -n $folder && -f $folder/conf/defaults.ini ]]; then
        home=$(realpath "$folder")
        break
      fi
    done
  fi
  if [[ -n $home ]]; then
    # Whoever reaches the gateway reaches it: they may look, and there is no
    # administrator with the password that everybody knows.
    launch grafana "$LOGS/grafana.log" \
      env GF_SERVER_HTTP_ADDR=127.0.0.1 GF_SERVER_HTTP_PORT=3000 GF_SERVER_ROOT_URL=http://127.0.0.1:8888/grafana/ \
      GF_PATHS_DATA="$STATE/data/grafana" GF_PATHS_LOGS="$STATE/data/grafana/log" GF_PATHS_PLUGINS="$STATE/data/grafana/plugins" \
      GF_AUTH_ANONYMOUS_ENABLED=true GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION=true \
      GF_ANALYTICS_REPORTING_ENABLED=false GF_ANALYTICS_CHECK_FOR_UPDATES=false GF_ANALYTICS_CHECK_FOR_PLUGIN_UPDATES=false \
      "${run[@]}" --homepath "$home"
    step "Grafana started ($binary)"
  else
    launch grafana "$LOGS/grafana.log" python3 "$DEMO/grafana_standin.py"
    step "a stand-in for Grafana started: not Grafana, only its /api/health ($why)"
  fi
}

start_readiness() {
  launch readiness "$LOGS/readiness.log" python3 "$DEMO/readiness.py" "$YAML/endpoints.yaml"
}

# contents FOLDER prints what its files hold, but for what readiness.py changes.
contents() {
  (cd "$1" && find . -type f ! -name '.*' -print0 | LC_ALL=C sort -z | xargs -0r tail -v -n +1) | sed 's/\bready: false/ready: true/'
}

# write_yaml puts the sample where it can be edited. Edits of an earlier run are
# kept beside it.
write_yaml() {
  local given=$STATE/.yaml-as-given kept
  if [[ -d $YAML && -d $given && $(contents "$YAML") != "$(contents "$given")" ]]; then
    kept=$YAML-$(date +%Y%m%d-%H%M%S)
    mv "$YAML" "$kept"
    say "the YAML files that had been edited are kept in $kept"
  fi
  rm -rf "$YAML" "$given"
  mkdir "$given"
  cp "$ROOT"/config/samples/monitoring/*.yaml "$DEMO/endpoints.yaml" "$given"
  cp -r "$given" "$YAML"
}

start_gateway() {
  local state=$GATEWAY
  # The configuration of an earlier run must not answer for this one's.
  rm -rf "$state"
  launch gateway "$TABLE" "$ROOT/bin/manager" standalone -f "$YAML" --state-dir "$state" --envoy "$1"
}

# newest_table prints the table that the manager printed last: a line with the
# time, then the head of its columns.
newest_table() {
  awk 'BEGIN { RS = "" } /^[0-9:]+\nNAMESPACE / { last = $0 } END { print last }' "$TABLE"
}

# settled_table waits a little for the last acknowledgements and endpoints.
settled_table() {
  local i table last=
  for ((i = 0; i < 10; i++)); do
    sleep 0.5
    table=$(newest_table)
    [[ $table != "$last" || -z $table ]] || break
    last=$table
  done
  echo "$table"
}

# --- up and down ------------------------------------------------------------

# alone makes sure that one of us at a time starts and stops.
alone() {
  command -v flock >/dev/null || return 0
  exec {LOCK}>"$STATE/lock"
  flock -n "$LOCK" || {
    say "waiting for another \`make demo\` or \`make demo-down\` to end"
    flock "$LOCK"
  }
}

show() {
  local report status=0
  report=$(python3 "$DEMO/probe.py" 2 "${URLS[@]}") || status=$?
  printf '\n%s\n\n%s\n\n' "$report" "$(settled_table)"
  cat <<END
edit    $YAML/*.yaml: the gateway follows at once
watch   tail -f $TABLE: every new table, and what is wrong with a file
logs    $LOGS and $GATEWAY/monitoring_monitoring
stop    make demo-down

The gateway listens on all addresses of this machine, what is behind it on 127.0.0.1.
END
  return $status
}

up() {
  local name envoy taken socket missing=()
  [[ $(uname -s) == Linux ]] || fail "the demo runs on Linux only: start it in a virtual machine or a container"
  "$ROOT/hack/need.sh" python3
  require setsid "install util-linux, then run this again"
  socket=$GATEWAY/monitoring_monitoring/pages.sock
  ((${#socket} <= 107)) || fail "$socket is too long for a Unix socket (${#socket} of at most 107 bytes): set XDG_STATE_HOME to a shorter folder"
  mkdir -p "$STATE"/{run,logs,data} 2>/dev/null || fail "cannot write $STATE: set XDG_STATE_HOME to a folder that can be written"
  alone

  for name in "${NAMES[@]}"; do
    running "$name" >/dev/null || missing+=("$name")
  done
  if ((${#missing[@]} == 0)); then
    echo "The demo is running already (for a new build: make demo-down, then make demo)."
    show || true
    return
  fi
  if ((${#missing[@]} < ${#NAMES[@]})); then say "starting what has ended: ${missing[*]}"; fi

  local ports=()
  for name in "${missing[@]}"; do
    [[ -z ${PORT[$name]:-} ]] || ports+=("${PORT[$name]}")
  done
  taken=$(python3 "$DEMO/ports.py" "${ports[@]}")
  # An Envoy whose manager was killed a moment ago is about to end.
  [[ -z $taken ]] || {
    sleep 1
    taken=$(python3 "$DEMO/ports.py" "${ports[@]}")
  }
  [[ -z $taken ]] || fail "the demo cannot start:
$taken
then run this again"

  trap undo EXIT
  trap 'exit 130' INT
  trap 'exit 143' TERM HUP
  if [[ " ${missing[*]} " == *" gateway "* ]]; then
    require go "install Go 1.21 or newer (it fetches the pinned $GOTOOLCHAIN by itself), then run this again"
    # Asked for a toolchain, one that is too old ignores it, and then fails in
    # words that do not say so.
    case $(go version) in
    *" go1."?"."* | *" go1."?" "* | *" go1.1"[0-9]* | *" go1.20"*)
      fail "this is $(go version | cut -d' ' -f3), which cannot fetch the pinned $GOTOOLCHAIN by itself: install Go 1.21 or newer, then run this again"
      ;;
    esac
    require make "install it, then run this again"
    envoy=$("$ROOT/hack/envoy.sh")
    step "Envoy $("$envoy" --version | sed -n 's|.*version: [0-9a-f]*/\([^/]*\)/.*|\1|p') is there"
    GOFLAGS="$(go env GOFLAGS) -v" make -s -C "$ROOT" build 2>&1 | progress "manager and agent" ||
      fail "manager and agent could not be built: the reason is above"
    step "manager and agent built"
    write_yaml
  fi

  for name in "${missing[@]}"; do
    "start_$name" "${envoy:-}"
  done
  await prometheus 60 http://127.0.0.1:9090/-/healthy
  await influxdb 60 http://127.0.0.1:8086/ping
  await grafana 120 http://127.0.0.1:3000/api/health
  step "each of them answers"
  await gateway 60 "${URLS[@]}"
  step "each answers through the gateway"
  trap - EXIT INT TERM HUP

  say "the demo is up after $(seconds "$BEGUN")"
  show
}

down() {
  [[ -d $STATE/run ]] || return 0
  alone
  local was
  was=$(all_running | paste -sd' ')
  finish_all
  [[ -z $was ]] || echo "The demo has been stopped: $was."
}

case ${1:-} in
up | down) "$1" ;;
*) fail "usage: hack/demo.sh up|down" ;;
esac
