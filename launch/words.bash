# Sourced by the launch scripts: their arguments, words that go safely into shells on other machines and into YAML, and
# checks of names.

dry=false action="" flags=()

# The comment at the top of the script.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
  exit "${1:-0}"
}

fail() {
  echo "$0: $*" >&2
  exit 2
}

# Runs a command, or prints it with --dry-run.
run() {
  if $dry; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

# parse WHAT ACTIONS KEYS SWITCHES "$@": sets the variable KEY for each --KEY=VALUE, SWITCH to true for each --SWITCH, and
# `action`, `dry`, `flags`: what comes after --, for WHAT.
parse() {
  local what="$1" actions=" $2 " keys=" $3 " switches=" $4 "
  shift 4
  while [ $# -gt 0 ]; do
    if [ "$1" = -- ]; then
      flags=("${@:2}")
      return
    elif [ "$1" = -h ] || [ "$1" = --help ]; then
      usage
    elif [ "$1" = --dry-run ]; then
      dry=true
    elif [[ "$1" =~ ^[a-z]+$ && "$actions" == *" $1 "* ]]; then
      action="$1"
    elif [[ "$1" =~ ^--([a-z]+)= && "$keys" == *" ${BASH_REMATCH[1]} "* ]]; then
      printf -v "${BASH_REMATCH[1]}" %s "${1#*=}"
    elif [[ "$1" =~ ^--([a-z]+)$ && "$switches" == *" ${BASH_REMATCH[1]} "* ]]; then
      printf -v "${BASH_REMATCH[1]}" true
    else
      fail "unknown argument $1 (flags for $what come after --). See $0 --help"
    fi
    shift
  done
}

# needed WHOSE KEY...: stops with one line unless each of the variables has a value.
needed() {
  local key
  for key in "${@:2}"; do
    [ -n "${!key}" ] || fail "$1--$key is needed"
  done
}

# Each argument as a word of any POSIX shell, in single quotes; one that needs none is left as it is.
quoted() {
  local word LC_ALL=C
  for word in "$@"; do
    if [[ "$word" =~ ^[A-Za-z0-9_./:=,@+-]+$ ]]; then
      printf '%s ' "$word"
    else
      printf "'%s' " "${word//\'/\'\\\'\'}"
    fi
  done
}

# A YAML string in double quotes, which JSON's rules of quoting fit.
yaml() {
  local text="$1"
  text="${text//\\/\\\\}"
  text="${text//\"/\\\"}"
  text="${text//$'\t'/\\t}"
  text="${text//$'\n'/\\n}"
  text="${text//$'\r'/\\r}"
  printf '"%s"' "$text"
}

# checked --KEY VALUE REGULAR-EXPRESSION WHAT-IS-ALLOWED: stops with one line unless the whole value fits.
checked() {
  local LC_ALL=C
  [[ "$2" =~ ^($3)$ ]] || fail "$1=$(printf '%q' "$2"): allowed: $4"
}

# How many workers there are at least and at most.
checked_workers() {
  if ! [[ "$1" =~ ^[0-9]{1,9}:[0-9]{1,9}$ ]] || [ "${1%:*}" -gt "${1#*:}" ] || [ "${1#*:}" = 0 ]; then
    fail "--workers=$1: MIN:MAX is needed, such as 0:16"
  fi
}

# Control characters other than tab and line ends have no place in a flag.
checked_flags() {
  local flag LC_ALL=C
  for flag in "$@"; do
    case "${flag//[$'\t\n\r']/}" in
      *[$'\001'-$'\037'$'\177']*) fail "$(printf '%q' "$flag"): control characters are not allowed in a flag" ;;
    esac
  done
}

# What the names of things may be made of.
readonly LABEL='[a-z]([-a-z0-9]{0,61}[a-z0-9])?' LABEL_IS="a lower-case letter, then up to 62 letters, digits, hyphens"
readonly CLAIM='[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?' CLAIM_IS="lower-case letters, digits, hyphens, dots"
readonly NUMBER='[0-9]{1,9}' NUMBER_IS="a whole number"
readonly IMAGE='[A-Za-z0-9][A-Za-z0-9._/:@-]{0,500}' IMAGE_IS="REGISTRY/IMAGE:TAG or REGISTRY/IMAGE@sha256:DIGEST"
readonly WORD='[A-Za-z0-9][A-Za-z0-9._-]{0,199}' WORD_IS="letters, digits, dots, underscores, hyphens"
readonly PROJECT='[a-z][-a-z0-9.:]{0,99}' PROJECT_IS="the project's id: lower-case letters, digits, hyphens"
