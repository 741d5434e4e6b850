# To be sourced: makes a docker-archive of a folder, with nothing but tar and sha256sum.
#   archive FOLDER FILE NAME:TAG CONFIG     CONFIG is the JSON of the image's `config`
archive() {
    local root=$1 out=$2 name=$3 config=$4 image diff
    image=$(mktemp -d)
    tar -C "$root" --owner=0 --group=0 --mtime=@0 --sort=name -cf "$image/layer.tar" .
    diff=$(sha256sum "$image/layer.tar" | cut -d' ' -f1)
    cat >"$image/config.json" <<JSON
{"architecture":"amd64","os":"linux","config":$config,"rootfs":{"type":"layers","diff_ids":["sha256:$diff"]},"history":[{"created_by":"$name"}]}
JSON
    printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$name" >"$image/manifest.json"
    tar -C "$image" -cf "$out" manifest.json config.json layer.tar
    rm -rf "$image"
}
