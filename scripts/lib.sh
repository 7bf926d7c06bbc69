# shellcheck shell=bash
# Set-up shared by the scripts in this folder; sourced, never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv
cd "$root" || exit

# An ordinary user's PATH often lacks the folders of servers.
for folder in /usr/sbin /sbin /usr/lib/postgresql/*/bin; do
    case ":$PATH:" in
        *":$folder:"*) ;;
        *) PATH=$PATH:$folder ;;
    esac
done
export PATH

say() {
    printf '%s\n' "$*" >&2
}

# True if the given program, or shared library such as libz.so.1, is installed.
has() {
    case $1 in
        *.so.*) ldconfig -p | grep -F "$1" >/dev/null ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

may_install() {
    has apt-get && { [ "$(id -u)" -eq 0 ] || { has sudo && sudo -n true 2>/dev/null; }; }
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Install Debian packages without questions and without starting services. Shows apt's output only on failure.
install_packages() (
    guard=/usr/sbin/policy-rc.d
    made_guard=
    log=$(mktemp)
    # shellcheck disable=SC2317 # the trap calls it
    clean_up() {
        rm -f "$log"
        if [ -n "$made_guard" ]; then as_root rm -f "$guard"; fi
    }
    trap clean_up EXIT
    if [ ! -e "$guard" ]; then
        made_guard=yes
        # invoke-rc.d asks this file; 101 means "not allowed".
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$guard" >/dev/null
        as_root chmod 755 "$guard"
    fi
    say "installing Debian packages: $*"
    if ! {
        if ! has postfix; then
            echo 'postfix postfix/main_mailer_type select No configuration' | as_root debconf-set-selections
        fi
        as_root apt-get -qq -o DPkg::Lock::Timeout=120 update
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends \
            -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 install "$@"
    } >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        return 1
    fi
)

# Install the packages of the given "program:package" pairs if that is allowed; name the programs still missing.
# Fails if any is.
need_programs() {
    local pair packages=() missing=0
    for pair in "$@"; do
        has "${pair%%:*}" || packages+=("${pair##*:}")
    done
    if [ ${#packages[@]} -gt 0 ] && may_install; then
        install_packages "${packages[@]}" || say "these packages could not be installed"
        for folder in /usr/lib/postgresql/*/bin; do # exists only now if postgresql has just been installed
            PATH=$PATH:$folder
        done
    fi
    for pair in "$@"; do
        if ! has "${pair%%:*}"; then
            say "missing: ${pair%%:*} (Debian package ${pair##*:})"
            missing=1
        fi
    done
    return "$missing"
}

# Print the first Python that is recent enough and can create virtual environments.
find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        # Prints sys.executable, because a version manager's shim may select another Python in another folder.
        "$candidate" -c 'import ensurepip, sys, venv; sys.version_info >= (3, 11) or sys.exit(1); print(sys.executable)' \
            2>/dev/null && return
    done
    return 1
}

# Create .venv and install the project with the given arguments of pip, unless that was done for this pyproject.toml.
# The first argument names the set of requirements.
set_up_venv() {
    local name=$1 python stamp
    shift
    if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        if ! python=$(find_python); then
            if may_install; then install_packages python3 python3-venv || true; fi
            if ! python=$(find_python); then
                say "missing: python3, 3.11 or newer, with venv (Debian packages python3 and python3-venv)"
                exit 1
            fi
        fi
        say "making the virtual environment .venv with $python"
        "$python" -m venv --clear "$venv"
    fi
    stamp=$(printf '%s\n' "$*" | cat - pyproject.toml | sha256sum)
    if [ "$(cat "$venv/.set-up-$name" 2>/dev/null)" != "$stamp" ]; then
        say "installing the project's requirements into .venv"
        # Dependency groups need pip 25.1.
        "$venv/bin/python" -m pip install --quiet --upgrade 'pip>=25.1'
        "$venv/bin/python" -m pip install --quiet "$@"
        printf '%s\n' "$stamp" >"$venv/.set-up-$name"
    fi
}

# Print the given Debian packages and those of their dependencies that this machine lacks, one a line.
missing_packages() {
    printf '%s\n' "$@"
    # A simulation: nothing is installed. It also prints removals, which are skipped.
    apt-get -qq --simulate --no-install-recommends install "$@" | awk '$1 == "Inst" { print $2 }'
}

# Unpack Debian packages into build/servers/NAME, with the dependencies that this machine lacks, without installing
# them: Exim's would remove Postfix. Arguments: NAME PACKAGE...
unpack_packages() (
    folder=$root/build/servers/$1
    shift
    stamp="$* $(dpkg --print-architecture) $(cat /etc/debian_version)" || exit 1
    if [ "$(cat "$folder/.unpacked" 2>/dev/null)" = "$stamp" ]; then exit 0; fi
    say "unpacking Debian packages, without installing them: $*"
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    download() (
        cd "$work" || exit
        packages=$(missing_packages "$@" | sort -u) || exit
        # shellcheck disable=SC2086 # one word for each package
        apt-get -qq -o APT::Sandbox::User=root download $packages
    )
    if ! download "$@" >"$work/log" 2>&1; then
        # The list of packages may be missing or outdated.
        if ! { may_install && as_root apt-get -qq -o DPkg::Lock::Timeout=120 update && download "$@"; } \
            >"$work/log" 2>&1; then
            tail -n 5 "$work/log" >&2
            exit 1
        fi
    fi
    rm -rf "$folder"
    mkdir -p "$folder"
    for file in "$work"/*.deb; do
        dpkg-deb -x "$file" "$folder" || exit 1
    done
    printf '%s\n' "$stamp" >"$folder/.unpacked"
)

# Unpack the servers given as "name:package"; name those still missing. Fails if any is.
need_unpacked() {
    local pair missing=0
    for pair in "$@"; do
        if ! { has apt-get && has dpkg-deb && unpack_packages "${pair%%:*}" "${pair##*:}"; }; then
            say "missing: build/servers/${pair%%:*} (Debian package ${pair##*:}, unpacked)"
            missing=1
        fi
    done
    return "$missing"
}
