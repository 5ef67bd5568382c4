# What the scripts of this folder share. To be sourced, not run.
# shellcheck shell=bash
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
# Everything that is built or downloaded once lives outside the checkout, so
# that a second clone, a branch or a `git clean` costs nothing.
CACHE=${MESHROUTE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/meshroute}

# go.mod alone says which toolchain is ours. Container images and some machines
# set GOTOOLCHAIN=local, which would refuse this module; any other value is
# somebody's choice.
case ${GOTOOLCHAIN:-local} in
local | auto)
  GOTOOLCHAIN=$(awk '$1 == "toolchain" { t = $2 } $1 == "go" { g = "go" $2 } END { print t ? t : g }' "$ROOT/go.mod")
  ;;
esac
export GOTOOLCHAIN
# Tools run on this machine, whatever the product is being built for.
unset GOOS GOARCH

# Standard output is for answers (a path); everything said to people goes to
# standard error.
say() { printf '%s\n' "$*" >&2; }
fail() {
  say "error: $*"
  exit 1
}

require() { # require COMMAND SENTENCE
  command -v "$1" >/dev/null || fail "$1 is missing: $2"
}

# digest FILE… WORD… hashes what determines a cached thing: files by their
# content, anything else as it is.
digest() {
  local part
  for part in "$@"; do
    if [[ -f $part ]]; then sha256sum <"$part"; else printf '%s\n' "$part"; fi
  done | sha256sum | cut -c1-12
}

# once TARGET COMMAND… makes the folder TARGET if it is not there: COMMAND gets
# a temporary folder as its last argument and fills it; it is renamed only when
# complete. Others who want the same wait for it instead of making it twice.
once() {
  local target=$1 lock
  shift
  [[ -d $target ]] && return
  mkdir -p "$(dirname "$target")" || fail "cannot write $(dirname "$target"): set MESHROUTE_CACHE to a folder that can be written"
  exec {lock}>"$target.lock"
  if command -v flock >/dev/null; then
    flock -n "$lock" || {
      say "waiting for another process that makes ${target#"$CACHE"/}"
      flock "$lock"
    }
  fi
  if [[ ! -d $target ]]; then
    (
      work=$(mktemp -d "$target.XXXXXX")
      trap 'rm -rf "$work"' EXIT
      "$@" "$work"
      chmod 755 "$work"
      mv "$work" "$target"
    )
  fi
  exec {lock}>&-
}

# progress NAME reads the output of `go build -v` (a package on each line) and
# tells now and then how far it is; what is no package path is shown as it is.
progress() {
  local name=$1 line count=0 start=$SECONDS told=$SECONDS status
  while true; do
    status=0
    IFS= read -r -t 15 line || status=$?
    if ((status == 0)); then
      case $line in
      "go: downloading "*) ;;
      *[[:space:]]*) say "$line" ;;
      *) count=$((count + 1)) ;;
      esac
    elif ((status <= 128)); then
      break
    fi
    if ((SECONDS - told >= 15)); then
      told=$SECONDS
      say "  $name: $((SECONDS - start)) s, $count packages compiled"
    fi
  done
}
