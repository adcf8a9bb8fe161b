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

_mw_sessions() {
  "${words[0]}" ps 2>/dev/null | sed -n 's/^\([a-z0-9-]*\)  .*/\1/p'
}

_mw_sockets() {
  "${words[0]}" flows 2>/dev/null | sed -n 's/.* \([0-9]*:[0-9]*\)$/\1/p'
}

_mw_rules() {
  "${words[0]}" rules 2>/dev/null | sed -n 's/^ *\([0-9]*\) in force .*/\1/p'
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
    undo) mapfile -t COMPREPLY < <(compgen -W "$(_mw_rules)" -- "$cur") ;;
    close | get | set | pause | resume | why) ((cword > 2)) || mapfile -t COMPREPLY < <(compgen -W "$(_mw_sockets)" -- "$cur") ;;
  esac
} && complete -F _mw mw
