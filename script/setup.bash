# shellcheck shell=bash
# What script/demo and script/test share: the packages, the Python and the virtual environment that they need.
#
# Sourced, not run. A set-up that was done before takes a second; each step that has to be done prints one line.
# After `set_up` these are known, and `as_user` runs a command without privileges:
#
#   clone    the directory of this clone
#   venv     the virtual environment with wal-e in it, the same code as in the clone
#   pg_bin   the directory of PostgreSQL's programs
#   user     whom servers and wal-e run as: ourselves, or an unprivileged user when we are root

clone=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=script/$(basename "$0")
home=/ # HOME of what `as_user` runs
also=() # programs that are needed besides, each from a package of its name
extras="" # of wal-e, which are installed with it, such as "[test]"
umask 022

say() {
    printf '%s: %s\n' "$program" "$1"
}

refuse() {
    printf '%s: %s\n' "$program" "$1" >&2
    exit 2
}

set_up() {
    exec 9<"$clone" # two set-ups of one clone take turns
    flock -n 9 || { say "waiting for another set-up of this clone" && flock 9; }
    look_around
    if [ ${#missing[@]} -gt 0 ]; then
        may_install || ask_for_packages
        step "installing ${missing[*]} with apt-get" install_packages
        look_around
        [ ${#missing[@]} -eq 0 ] || ask_for_packages
    fi
    prepare_venv
    exec 9<&-
}

# Run "$@" silently behind a line that says what happens; when it fails, show what it wrote and end.
step() {
    local output
    output=$(mktemp)
    say "$1"
    if "${@:2}" >"$output" 2>&1 </dev/null 9<&-; then
        rm -f "$output"
    else
        cat "$output" >&2
        rm -f "$output"
        refuse "that failed: $1"
    fi
}

am_root() {
    [ "$(id -u)" -eq 0 ]
}

as_root() {
    if am_root; then "$@"; else sudo -n "$@"; fi
}

# Run "$@" as the unprivileged user, in an environment that has nothing of ours but PATH.
as_user() {
    local become=()
    if am_root; then
        become=(setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups --)
    fi
    env -i PATH="$PATH" HOME="$home" LANG=C.UTF-8 "${become[@]}" "$@"
}

look_around() {
    local tool
    missing=()
    choose_user
    find_postgres
    find_python
    [ -n "$pg_bin" ] || missing+=(postgresql)
    command -v lzop >/dev/null || missing+=(lzop)
    for tool in "${also[@]}"; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    { command -v gpg && command -v gpg-agent; } >/dev/null || missing+=(gnupg)
    if [ -z "$python" ]; then
        [ ! -x /usr/bin/python3 ] || refuse "Python 3.11 or later is needed (Debian 12 and Ubuntu 24.04 have it); this system's is $(/usr/bin/python3 --version)"
        missing+=(python3-venv)
    elif ! "$python" -I -c "import ensurepip, venv" 2>/dev/null; then
        missing+=("$(basename "$python")-venv")
    fi
}

choose_user() {
    if ! am_root; then
        user=$(id -un)
    elif id postgres >/dev/null 2>&1; then
        user=postgres
    else
        user=nobody
    fi
}

# The newest PostgreSQL of Debian's packages, else the one on PATH.
find_postgres() {
    local directory name
    while read -r directory; do
        for name in initdb pg_ctl postgres psql pgbench; do
            [ -x "$directory/$name" ] || continue 2
        done
        pg_bin=$directory
        return
    done < <(
        printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV
        dirname "$(command -v initdb || echo /nonexistent/initdb)"
    )
    pg_bin=""
}

# The system's Python, else the one on PATH: new enough, and one that the unprivileged user can run
# (an interpreter under root's home is not).
find_python() {
    local candidate
    for candidate in /usr/bin/python3 /usr/bin/python3.1[1-9] "$(command -v python3 || true)"; do
        if [ -n "$candidate" ] && as_user "$candidate" -I -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then
            python=$candidate
            return
        fi
    done
    python=""
}

may_install() {
    command -v apt-get >/dev/null && { am_root || sudo -n true 2>/dev/null; }
}

ask_for_packages() {
    refuse "these packages are missing and cannot be installed from here: ${missing[*]}
Install them, then run $program again:
    sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}"
}

# Debian would create and start a cluster with a newly installed server: a drop-in forbids it meanwhile.
install_packages() (
    drop_in=/etc/postgresql-common/createcluster.d/wal-e-setup.conf
    if [[ " ${missing[*]} " == *" postgresql "* ]]; then
        trap 'as_root rm -f "$drop_in" && as_root rmdir --ignore-fail-on-non-empty "$(dirname "$drop_in")"' EXIT
        as_root mkdir -p "$(dirname "$drop_in")" && echo "create_main_cluster = false" | as_root tee "$drop_in" || exit
    fi
    as_root apt-get update || echo "apt-get update failed; trying with the package lists that are there"
    as_root env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 \
        apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=300 "${missing[@]}"
)

# Root's environment lies outside the clone, which the unprivileged user may be unable to reach.
prepare_venv() {
    local dependencies sources
    if am_root; then
        venv=/var/cache/wal-e-dev/$(printf '%s' "$clone" | sha256sum | cut -c 1-12)
    else
        venv=$clone/.cache/venv
    fi
    dependencies=$({ echo "$python" && "$python" --version && cat "$clone"/{setup.py,script/setup.bash}; } | sha256sum)
    sources=$(cd "$clone" && find wal_e bin setup.py pyproject.toml -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum | sha256sum)
    if [ "$(cat "$venv/.dependencies" 2>/dev/null)" != "$dependencies" ] || ! has_extras; then
        step "making a virtual environment in $venv" make_venv
        echo "$dependencies" >"$venv/.dependencies"
        echo "$extras" >"$venv/.extras"
    fi
    if [ "$(cat "$venv/.sources" 2>/dev/null)" != "$sources" ]; then
        step "installing wal-e from $clone" install_wal_e "" --no-deps --no-build-isolation --force-reinstall
        echo "$sources" >"$venv/.sources"
    fi
    as_user "$venv/bin/python" -I -c "import wal_e" || refuse "the user $user cannot read $venv, where wal-e was installed"
}

has_extras() {
    [ -z "$extras" ] || [ "$(cat "$venv/.extras" 2>/dev/null)" = "$extras" ]
}

make_venv() {
    "$python" -I -m venv --clear "$venv" &&
        "$venv/bin/python" -I -m pip install --quiet "setuptools>=70.1" &&
        install_wal_e "$extras"
}

# Install from a copy: setuptools would leave build/ in the clone, and modules deleted since in the next package.
install_wal_e() {
    local extras=$1 copy status=0
    copy=$(mktemp -d) || return
    cp -R "$clone"/{setup.py,pyproject.toml,README.rst,LICENSE,bin,wal_e} "$copy" &&
        "$venv/bin/python" -I -m pip install --quiet "${@:2}" "$copy$extras" || status=$?
    rm -rf "$copy"
    return "$status"
}
