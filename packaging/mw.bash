# Completion of mw for bash. Commands and options are asked of mw itself, so that they are those of the version
# that is installed.

_mw_help() { # [COMMAND]: what mw says that it takes
  "${words[0]}" ${1:+"$1"} --help 2>/dev/null
}

_mw_commands() {
  _mw_help | sed -n '/^Subcommands:/,$ s/^  \([a-z][a-z-]*\) .*/\1/p'
}

_mw_options() { # COMMAND
  _mw_help "$1" | sed -n '/^Options:/,/^$/ s/^  \(-[^ ]*\).*/\1/p' | tr , '\n'
}

# The values of an option that takes one of a few, "-" if it takes something else, nothing if it takes none.
_mw_values() { # COMMAND OPTION
  _mw_help "$1" | sed -n "/^Options:/,/^\$/ s/^  \(.*,\)\{0,1\}$2\(,[^ ]*\)\{0,1\} \([^ ].*\)/\3/p" |
    sed -n -e '/{.*}/ { s/.*{\(.*\)}.*/\1/; y/,/\n/; p; q; }' -e '/^[A-Z[]/ s/.*/-/p'
}

# The names of features: what the help says of a positional word behind "One of: ".
_mw_features() { # COMMAND
  _mw_help "$1" | sed -n '/^Positionals:/,/^$/ s/^  feature .* One of: //p'
}

# The columns that `mw top` sorts by.
_mw_columns() {
  _mw_help top | sed -n '/^Options:/,/^$/ s/.*One of: //p'
}

# What a session says, the one that is named on the line if one is.
_mw_ask() { # COMMAND
  local i session=()
  for ((i = 2; i + 1 < cword; ++i)); do
    [[ ${words[i]} != -s && ${words[i]} != --session ]] || session=(-s "${words[i + 1]}")
  done
  "${words[0]}" "$1" "${session[@]}" 2>/dev/null
}

# A word of a filter, or the value of the one before.
_mw_filter() {
  case $prev in
    port) ;;
    peer) _mw_ask flows | awk '$3 ~ /:[0-9]+$/ { sub(/:[0-9]+$/, "", $3); gsub(/[][]/, "", $3); print $3 }' | sort -u ;;
    pid) _mw_ask flows | sed -n 's/.*\[\([0-9]*\)\].*/\1/p' | sort -u ;;
    *) printf '%s\n' listen tcp udp port peer pid ;;
  esac
}

# How many words before this one are no options: the command is the first.
_mw_place() { # COMMAND
  local i place=0
  for ((i = 2; i < cword; ++i)); do
    if [[ ${words[i]} == -* ]]; then
      [[ -z $(_mw_values "$1" "${words[i]}") ]] || ((++i))
    else
      ((++place))
    fi
  done
  echo "$place"
}

# Words that begin like this one. One that holds a colon is several to readline.
_mw_offer() { # WORDS
  mapfile -t COMPREPLY < <(compgen -W "$1" -- "$cur")
  __ltrim_colon_completions "$cur"
}

_mw_sessions() {
  "${words[0]}" ps 2>/dev/null | sed -n 's/^\([a-z0-9-]*\)  .*/\1/p'
}

_mw_sockets() {
  _mw_ask flows | sed -n 's/.* \([0-9]*:[0-9]*\)$/\1/p'
}

_mw_rules() {
  _mw_ask rules | sed -n 's/^ *\([0-9]*\) in force .*/\1/p'
}

_mw() {
  local cur prev words cword i
  _init_completion -n : || return
  local command=${words[1]-}
  if ((cword == 1)); then
    mapfile -t COMPREPLY < <(compgen -W "$(_mw_commands) --help" -- "$cur")
    return
  fi
  # Behind "--", or from the first word that is no option, it is another program's command line.
  if [[ $command == run || $command == doctor ]]; then
    for ((i = 2; i < cword; ++i)); do
      if [[ ${words[i]} == -- ]]; then
        _command_offset $((i + 1))
        return
      fi
      if [[ ${words[i]} != -* ]]; then
        _command_offset "$i"
        return
      fi
      [[ -z $(_mw_values "$command" "${words[i]}") ]] || ((++i))
    done
  fi
  if [[ $prev == -s || $prev == --session ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$(_mw_sessions)" -- "$cur")
    return
  fi
  case $prev in
    --config | --rules | --audit | --check | --netflow-*token-file | --netflow-certificate | --netflow-key)
      _filedir
      return
      ;;
    --sort)
      _mw_offer "$(_mw_columns)"
      return
      ;;
  esac
  local values
  [[ $prev != -* ]] || values=$(_mw_values "$command" "$prev")
  if [[ -n ${values-} ]]; then
    [[ $values == - ]] || mapfile -t COMPREPLY < <(compgen -W "$values" -- "$cur")
    return
  fi
  if [[ $cur == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$(_mw_options "$command")" -- "$cur")
    return
  fi
  case $command in
    run | doctor) _command_offset "$cword" ;;
    ps | adopt | clean | guard) mapfile -t COMPREPLY < <(compgen -W "$(_mw_sessions)" -- "$cur") ;;
    check-config) _filedir ;;
    flows | top) _mw_offer "$(_mw_filter)" ;;
    undo) mapfile -t COMPREPLY < <(compgen -W "$(_mw_rules)" -- "$cur") ;;
    close | pause | resume | why) (($(_mw_place "$command") > 0)) || _mw_offer "$(_mw_sockets)" ;;
    get | set)
      case $(_mw_place "$command") in
        0) _mw_offer "all $(_mw_sockets)" ;;
        1) _mw_offer "$(_mw_features "$command")" ;;
      esac
      ;;
  esac
} && complete -F _mw mw
