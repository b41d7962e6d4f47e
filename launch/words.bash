# Sourced by the launch scripts: words that go safely into shells on other machines and into YAML, and checks of names.

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
