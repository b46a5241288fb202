#!/bin/bash
# make_images.sh - build the realistic benchmark images and push them to a
# local OCI registry.  Idempotent: an image that is already in the registry and
# kept as an OCI layout is skipped; each expensive staging tree is kept too.
#
#   usage: make_images.sh [IMAGE ...]      (default: all, in dependency order)
#          make_images.sh stop             (end the registries that it left running)
#   images: debian-min python-app node-many ml deep
#
# Needs  root, the packages of `tools/setup-system bench`, a Python with pip, the
#        Debian, PyPI and npm registries, a kernel with overlayfs.
# Takes  about 15-20 minutes the first time on 2 cores, seconds after that;
#        about 12 GB of disk under $LAB.
# Knows  LAB, PORT, TLSPORT; SUITE, the Debian release inside the images; MIRROR,
#        where it comes from (else this system's own, else debootstrap's default);
#        PYTHON, whose pip downloads; TORCH, the requirement of the image ml: say
#        torch==VERSION+cpu where pip finds such a wheel, as the plain one is large.
# Makes  $LAB/registry        storage of the registry (127.0.0.1:5000 plain http;
#                             127.0.0.1:5001 same storage, TLS, self-signed)
#        $LAB/images/NAME     each image as an OCI layout (blobs gzip'ed exactly
#                             as pushed), tag "latest"
#        $LAB/stage           staging trees (debian, pip, npm, torch)
#        $LAB/build           buildah's storage
#
# The layers are produced by a real tool: buildah (containers/storage, Go gzip).
set -euo pipefail

LAB=${LAB:-/var/tmp/orlop-lab}
PORT=${PORT:-5000}
TLSPORT=${TLSPORT-5001}   # empty: without TLS there is none
REG=127.0.0.1:$PORT
SUITE=${SUITE:-bookworm}
PYTHON=${PYTHON:-python3}
TORCH=${TORCH:-torch==2.13.0}
# This system's own mirror if it has the release, or any release of Debian's; empty: debootstrap knows
own_mirror() {
  local filter
  for filter in "Release: $SUITE" 'Origin: Debian'; do
    apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "$filter" 2>/dev/null | grep -v security | head -n 1
  done | head -n 1
}
MIRROR=${MIRROR-$(own_mirror || true)}
STAGE=$LAB/stage IMG=$LAB/images
export BUILDAH_ISOLATION=chroot
if [ "${1:-}" = stop ]; then
  for pid in "$LAB"/run/registry-*.pid; do
    [ -f "$pid" ] || continue
    ! grep -qs docker-registry "/proc/$(cat "$pid")/cmdline" || kill "$(cat "$pid")"
    rm -f "$pid"
  done
  exit 0
fi
mkdir -p "$LAB"/{registry,images,stage,build,run,log}

B() { buildah --root "$LAB/build/root" --runroot "$LAB/build/run" --storage-driver overlay "$@"; }
say() { echo "[$(date +%T)] $*" >&2; }

# ------------------------------------------------------------------ registry
registry_up() {
  if [ ! -f "$LAB/registry.crt" ]; then
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=localhost \
      -addext "subjectAltName=DNS:localhost,IP:127.0.0.1" \
      -keyout "$LAB/registry.key" -out "$LAB/registry.crt" 2>/dev/null
  fi
  local port tls
  for port in "$PORT" $TLSPORT; do
    curl -sk -o /dev/null "http://127.0.0.1:$port/v2/" && continue
    tls=""
    [ "$port" = "$TLSPORT" ] && tls="  tls: {certificate: $LAB/registry.crt, key: $LAB/registry.key}"
    cat > "$LAB/registry-$port.yml" <<Y
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: $LAB/registry, maxthreads: 100}
  delete: {enabled: true}
http:
  addr: 127.0.0.1:$port
  secret: bench
$tls
Y
    setsid docker-registry serve "$LAB/registry-$port.yml" >"$LAB/log/registry-$port.log" 2>&1 < /dev/null &
    echo $! > "$LAB/run/registry-$port.pid"
  done
  for _ in $(seq 50); do curl -s -o /dev/null "http://$REG/v2/" && return; sleep .1; done
  echo "registry does not come up" >&2; exit 1
}

have() {   # have NAME: in the registry and kept as an OCI layout
  [ -f "$IMG/$1/index.json" ] &&
    curl -sf -o /dev/null -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$REG/v2/$1/manifests/latest"
}

publish() {  # publish NAME: buildah image -> registry -> OCI layout (same blobs)
  say "push $1"
  B push -q --tls-verify=false --format oci "$1" "docker://$REG/$1:latest"
  rm -rf "$IMG/$1"
  skopeo copy -q --src-tls-verify=false "docker://$REG/$1:latest" "oci:$IMG/$1:latest"
}

layer() {    # layer BASE NEW FUNCTION: run FUNCTION ROOTFS in a container from BASE, commit as NEW
  local c m
  c=$(B from --pull-never "$1"); m=$(B mount "$c")
  "$3" "$m"
  B umount "$c" >/dev/null
  B commit -q --rm "$c" "$2" >/dev/null
}

in_root() {  # in_root ROOTFS CMD...: chroot with /proc, /dev and the host's resolver
  local m=$1; shift
  mount --rbind /dev "$m/dev"; mount -t proc proc "$m/proc"
  cp -L /etc/resolv.conf "$LAB/run/resolv"; [ -e "$m/etc/resolv.conf" ] || touch "$m/etc/resolv.conf"
  mount --bind "$LAB/run/resolv" "$m/etc/resolv.conf"
  local rc=0; DEBIAN_FRONTEND=noninteractive LC_ALL=C chroot "$m" "$@" || rc=$?
  umount "$m/etc/resolv.conf" "$m/proc"; umount -R -l "$m/dev"
  return $rc
}

# ------------------------------------------------------------------ debian-min
stage_debian() {
  [ -f "$STAGE/debian.done" ] && return
  say "debootstrap"; rm -rf "$STAGE/debian"
  debootstrap --variant=minbase "$SUITE" "$STAGE/debian" ${MIRROR:+"$MIRROR"} >"$LAB/log/debootstrap.log"
  rm -f "$STAGE/debian"/var/cache/apt/archives/*.deb
  touch "$STAGE/debian.done"
}
put_debian() { rsync -aHAX --numeric-ids "$STAGE/debian/" "$1/"; }
make_debian_min() {
  stage_debian
  layer scratch debian-min put_debian
}

# ------------------------------------------------------------------ python-app
put_apt_python() {
  in_root "$1" sh -c 'apt-get update -qq && apt-get install -qq -y --no-install-recommends python3 >/dev/null && apt-get clean && rm -rf /var/lib/apt/lists/*'
}
# The release's own Python, for whose version pip chooses the wheels whatever runs this script
python_version() {
  case "$SUITE" in
    bookworm) echo 3.11 ;;
    trixie) echo 3.13 ;;
    *) echo "make_images: which Python has $SUITE?" >&2; return 1 ;;
  esac
}
pip_into() {   # pip_into FOLDER LOG REQUIREMENT...
  local folder=$1 log=$2; shift 2
  "$PYTHON" -m pip install -q --target "$folder" --python-version "$(python_version)" --only-binary=:all: "$@" 2>"$log"
}
put_packages() {   # put_packages FOLDER ROOTFS
  local where; where=$2/usr/local/lib/python$(python_version)/dist-packages
  mkdir -p "$where"; rsync -a "$1/" "$where/"
}
stage_pip() {
  [ -f "$STAGE/pip.done" ] && return
  say "pip install"; rm -rf "$STAGE/pip"
  pip_into "$STAGE/pip" "$LAB/log/pip.log" numpy pandas scikit-learn scipy flask sqlalchemy requests \
    matplotlib pyyaml jinja2 pydantic fastapi uvicorn cryptography pytest
  touch "$STAGE/pip.done"
}
put_pip() { put_packages "$STAGE/pip" "$1"; }
put_app() {
  mkdir -p "$1/srv/app/static"
  local i; for i in $(seq 40); do printf 'def f%d(x):\n    return x + %d\n' "$i" "$i" > "$1/srv/app/mod$i.py"; done
  head -c 200000 /dev/urandom > "$1/srv/app/static/logo.png"
  echo 'flask==3' > "$1/srv/app/requirements.txt"
}
base_python() {  # shared by python-app and ml
  B inspect --type image debian-python >/dev/null 2>&1 || layer debian-min debian-python put_apt_python
}
make_python_app() {
  need debian-min; base_python; stage_pip
  layer debian-python python-libs put_pip
  layer python-libs python-app put_app
}

# ------------------------------------------------------------------ node-many
stage_npm() {
  [ -f "$STAGE/npm.done" ] && return
  say "npm install"; rm -rf "$STAGE/npm"; mkdir -p "$STAGE/npm"
  (cd "$STAGE/npm" && echo '{"name":"app","version":"1.0.0","private":true}' > package.json &&
   npm install --ignore-scripts --legacy-peer-deps --no-audit --no-fund --silent \
     next react react-dom webpack typescript eslint jest react-scripts @angular/cli @angular/core \
     @mui/material date-fns lodash rxjs core-js googleapis \
     vite rollup storybook express prisma >"$LAB/log/npm.log" 2>&1)
  touch "$STAGE/npm.done"
}
put_npm() { mkdir -p "$1/app"; rsync -a "$STAGE/npm/" "$1/app/"; }
make_node_many() {
  need debian-min; stage_npm
  layer debian-min node-many put_npm
}

# ------------------------------------------------------------------ ml
stage_torch() {
  [ -f "$STAGE/torch.done" ] && return
  say "pip install torch"; rm -rf "$STAGE/torch"
  # Named one by one: what a GPU build would bring along is several GB
  pip_into "$STAGE/torch" "$LAB/log/torch.log" --no-deps "$TORCH" \
    filelock fsspec jinja2 markupsafe mpmath networkx sympy typing-extensions
  touch "$STAGE/torch.done"
}
put_torch() { put_packages "$STAGE/torch" "$1"; }
make_ml() {
  need debian-min; base_python; stage_torch
  layer debian-python ml put_torch
}

# ------------------------------------------------------------------ deep
# 60 layers; layer i adds, changes, deletes and swaps types, always the same way.
put_deep() {
  local m=$1 i=$DEEP_I d j
  d=$m/data; mkdir -p "$d/dir$i/sub/deeper"
  for j in $(seq 50); do echo "layer $i file $j" > "$d/dir$i/f$j"; done
  for j in $(seq 10); do echo "s$i.$j" > "$d/dir$i/sub/deeper/x$j"; done
  ln "$d/dir$i/f1" "$d/dir$i/f1.hard"; ln -s "../dir$i/f2" "$d/dir$i/link"
  echo "changed by $i" >> "$d/changing"                             # the same file in every layer
  echo "$i" > "$m/etc/deep-release"
  if [ "$i" -gt 1 ]; then
    local p=$((i-1))
    rm -f "$d/dir$p/f3" "$d/dir$p/f4"                               # whiteouts
    chmod 0750 "$d/dir$p/f5"; touch -d "2020-01-01 00:00:$((i%60))" "$d/dir$p/f6"   # metadata only
    mv "$d/dir$p/f7" "$d/dir$i/moved-f7"                            # rename across directories
    case $((i%5)) in
      0) rm -rf "$d/dir$p/sub"; mkdir "$d/dir$p/sub"; echo new > "$d/dir$p/sub/only" ;;        # opaque dir
      1) rm -rf "$d/dir$p/sub"; echo "now a file" > "$d/dir$p/sub" ;;                          # dir -> file
      2) rm -f "$d/dir$p/f8"; mkdir "$d/dir$p/f8"; echo in > "$d/dir$p/f8/in" ;;               # file -> dir
      3) rm -rf "$d/dir$p/sub"; ln -s deeper-elsewhere "$d/dir$p/sub" ;;                       # dir -> symlink
      4) rm -f "$d/dir$p/link"; mkdir "$d/dir$p/link"; echo l > "$d/dir$p/link/l" ;;           # symlink -> dir
    esac
    if [ $((i%10)) = 0 ]; then rm -rf "$d/dir$((i-5))"; fi          # a whole directory goes
    if [ $((i%10)) = 3 ] && [ "$i" -gt 10 ]; then                   # ... and comes back
      mkdir -p "$d/dir$((i-8))"; echo back > "$d/dir$((i-8))/back"; fi
    if [ $((i%12)) = 0 ]; then rm -rf "$m/usr/share/doc/$(ls "$m/usr/share/doc" | sed -n "${i}p")"; fi
  fi
}
make_deep() {
  need debian-min
  local prev=debian-min
  for DEEP_I in $(seq 60); do
    layer "$prev" "deep-$DEEP_I" put_deep
    prev=deep-$DEEP_I
  done
  B tag deep-60 deep
}

# ------------------------------------------------------------------ main
need() {
  B inspect --type image "$1" >/dev/null 2>&1 && have "$1" || make "$1"
}
make() {
  say "make $1"
  "make_${1//-/_}"; publish "$1"
}
registry_up
for name in "${@:-debian-min python-app node-many ml deep}"; do
  for n in $name; do
    if have "$n"; then say "$n is there"; else make "$n"; fi
  done
done
for n in "$IMG"/*/; do
  n=$(basename "$n")
  curl -s -H 'Accept: application/vnd.oci.image.manifest.v1+json' "http://$REG/v2/$n/manifests/latest" |
    jq -r --arg n "$n" '[$n, (.layers|length), ([.layers[].size]|add)] | @tsv'
done | awk '{printf "%-12s %3d layers %8.1f MB gzip\n", $1, $2, $3/1e6}'
