#!/usr/bin/env bash
# Runs one of the tools pinned in hack/tools/go.mod, built at its first use:
#   hack/tool.sh controller-gen --version
#   hack/tool.sh --path ginkgo        prints where the binary is
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

path_only=
if [[ ${1:-} == --path ]]; then
  path_only=yes
  shift
fi
[[ $# -gt 0 ]] || fail "usage: hack/tool.sh [--path] NAME [ARGUMENT…]"
name=$1
shift

module=$ROOT/hack/tools
flags=(-trimpath -buildvcs=false -ldflags "-s -w")

package=$(awk -v name="$name" '
  $1 == "tool" && $2 == "(" { inside = 1; next }
  $1 == ")" { inside = 0 }
  inside { path = $1; sub("/v[0-9]+$", "", path); sub(".*/", "", path); if (path == name) print $1 }
' "$module/go.mod")
[[ -n $package ]] || fail "no tool named $name in hack/tools/go.mod"
require go "install Go 1.21 or newer; it fetches the pinned $GOTOOLCHAIN by itself"

build() {
  local work=$1
  say "building $name, once$([[ $name != golangci-lint ]] || echo " (about 2 minutes on 2 cores)")"
  CGO_ENABLED=0 go -C "$module" build -v "${flags[@]}" -o "$work/$name" "$package" 2>&1 | progress "$name"
}

key=$(digest "$module/go.mod" "$module/go.sum" "$module"/*/*.go "$GOTOOLCHAIN" "${flags[*]}" "$(uname -sm)")
folder=$CACHE/tools/$key/$name
once "$folder" build
if [[ -n $path_only ]]; then
  echo "$folder/$name"
else
  exec "$folder/$name" "$@"
fi
