# How images are made without a registry, and without docker: a folder becomes
# an archive that docker, containerd and kind load. To be sourced after lib.sh.
# shellcheck shell=bash

# Modes of files are part of images, whatever this user's habit.
umask 022

# published IMAGE tells whether an image registry answers with this image.
published() {
  command -v docker >/dev/null && timeout 10 docker manifest inspect "$1" >/dev/null 2>&1
}

# archive FOLDER FILE CONFIG NAME… packs a folder as an image of one layer with
# these names. CONFIG is the image's configuration as JSON, for instance
# {"Entrypoint": ["/manager"], "User": "65532"}. Same folder, same bytes: files
# are sorted, carry the time of the epoch, and belong to root, or with OWNERS=kept
# to whom they belong.
archive() {
  local folder=$1 file=$2 config=$3 work layer id names
  local owners=(--owner=0 --group=0)
  shift 3
  [[ ${OWNERS:-} != kept ]] || owners=()
  work=$(mktemp -d "$file.XXXXXX")
  tar -C "$folder" --sort=name --mtime=@0 "${owners[@]}" --numeric-owner --format=gnu -cf "$work/layer.tar" .
  layer=$(sha256sum <"$work/layer.tar" | cut -d' ' -f1)
  jq -cn --argjson config "$config" --arg layer "sha256:$layer" --arg arch "$(go env GOARCH)" '{
    architecture: $arch, os: "linux", created: "1970-01-01T00:00:00Z", config: $config,
    rootfs: {type: "layers", diff_ids: [$layer]},
    history: [{created: "1970-01-01T00:00:00Z", created_by: "meshroute"}]}' >"$work/config"
  id=$(sha256sum <"$work/config" | cut -d' ' -f1)
  mv "$work/config" "$work/$id.json"
  names=$(printf '%s\n' "$@" | jq -Rn '[inputs]')
  jq -cn --argjson names "$names" --arg config "$id.json" \
    '[{Config: $config, RepoTags: $names, Layers: ["layer.tar"]}]' >"$work/manifest.json"
  tar -C "$work" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -cf "$work/archive" manifest.json "$id.json" layer.tar
  mv "$work/archive" "$file"
  rm -r "$work"
}

# skeleton FOLDER makes the folders of a small root file system, as Debian lays
# them out, with the users root and 65532.
skeleton() {
  mkdir -p "$1"/{etc,tmp,usr/{bin,sbin,lib,lib64}}
  chmod 1777 "$1/tmp"
  ln -s usr/bin usr/sbin usr/lib usr/lib64 "$1/"
  printf '%s\n' root:x:0:0:root:/:/bin/sh nonroot:x:65532:65532:nonroot:/:/sbin/nologin >"$1/etc/passwd"
  printf '%s\n' root:x:0: nonroot:x:65532: >"$1/etc/group"
}

# with_libraries ROOT FOLDER FILE… copies from the Debian in ROOT, into a skeleton,
# the libraries that these programs and libraries load. The dynamic loader itself
# names them.
with_libraries() {
  local root=$1 folder=$2 libraries loader library listed
  shift 2
  libraries=$(echo "$root"/usr/lib/*-linux-gnu)
  loader=$(echo "$libraries"/ld-linux-*.so.*)
  mkdir -p "$folder/${libraries#"$root"/}"
  listed=$(printf '%s\0' "$@" | xargs -0 -n 1 "$loader" --library-path "$libraries" --list)
  [[ $listed != *"not found"* ]] || fail "the Debian in $root lacks libraries of $*: $(grep 'not found' <<<"$listed" | sort -u)"
  grep -oE "$libraries/[^ ]+" <<<"$listed" | sort -u | while IFS= read -r library; do
    cp -Ln "$library" "$folder/${library#"$root"/}"
  done
  cp -Ln "$loader" "$folder/${loader#"$root"/}"
  # Where programs look for it, on amd64 and on arm64.
  for library in lib64 lib; do
    ln -sfr "$folder/${loader#"$root"/}" "$folder/usr/$library/${loader##*/}"
  done
}
