#!/usr/bin/env bash
# Checks that everything generated is current, that modules are tidy and that
# the linters pass. Goes on after a failure, and ends with what failed.
# shellcheck source=hack/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

# snapshot lists every file that git tracks or would track, with its content:
# so a difference is found in a dirty tree too, and in files not yet added.
snapshot() {
  git ls-files -z --cached --others --exclude-standard | sort -zu |
    while IFS= read -r -d '' file; do
      if [[ -f $file ]]; then printf '%s\0' "$file"; fi
    done | xargs -0 -r sha256sum
}

generated() {
  local before after changed
  before=$(snapshot)
  "${MAKE:-make}" --no-print-directory generate manifests docs
  after=$(snapshot)
  changed=$(diff <(echo "$before") <(echo "$after") | awk '/^[<>]/ { print "  " $3 }' | sort -u) || true
  [[ -z $changed ]] || {
    printf 'these were not current and have been regenerated:\n%s\n' "$changed"
    return 1
  }
}

modules() {
  local file status=0
  while IFS= read -r file; do
    go -C "$(dirname "$file")" mod tidy -diff || status=1
  done < <(git ls-files --cached --others --exclude-standard -- go.mod '*/go.mod' | sort -u)
  return $status
}

formatting() { hack/tool.sh golangci-lint fmt --diff; }

lint() { hack/tool.sh golangci-lint run; }

scripts() {
  if ! command -v shellcheck >/dev/null; then
    echo "skipped: shellcheck is not installed (Debian: apt-get install shellcheck)"
    return
  fi
  shellcheck --external-sources hack/*.sh hack/kind/*.sh hack/kind/runc-without-sys-resource .ci/run
}

render() {
  local file
  while IFS= read -r file; do
    # Components are no whole: they are rendered with what includes them.
    if grep -q '^kind: Component$' "$file"; then continue; fi
    hack/tool.sh kustomize build "$(dirname "$file")" >/dev/null || return 1
  done < <(git ls-files --cached --others --exclude-standard -- 'config/*kustomization.yaml' | sort -u)
}

failed=()
step() { # step FUNCTION WHAT REMEDY
  local status=0 start=$SECONDS
  echo "--- $2"
  # Not `if (…)`: a condition would switch off errexit within.
  set +e
  (
    set -e
    "$1"
  )
  status=$?
  set -e
  if ((status == 0)); then
    echo "    ok ($((SECONDS - start)) s)"
  else
    echo "    FAILED"
    failed+=("$2: $3")
  fi
}

git rev-parse --git-dir >/dev/null 2>&1 || fail "make verify compares with what git tracks: run it in a git checkout"
step generated "generated code, manifests and reference are current" "commit what has just been regenerated"
step modules "modules are tidy" "run \`go mod tidy\` in the module shown"
step formatting "formatting" "run \`make fmt\`"
step lint "linters and import rules" "mend what is listed above"
step scripts "shell scripts" "mend what is listed above"
step render "kustomizations render" "mend what is listed above"

if ((${#failed[@]})); then
  printf '\nmake verify: FAILED\n'
  printf '  %s\n' "${failed[@]}"
  exit 1
fi
printf '\nmake verify: everything is current\n'
