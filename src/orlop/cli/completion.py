"""The verb ``completion``: the scripts that have a shell ask orlop what a word can go on as.

A script knows nothing of verbs: at each Tab it starts orlop with the line so far, and reads lines of
``type``, ``value`` and ``help`` from it, with tabs between (`orlop.cli.completing`).
"""

from __future__ import annotations

from orlop.cli import declared as click
from orlop.cli import output
from orlop.cli.session import verb

__all__ = ["SCRIPTS", "completion_verb"]

# bash takes a word apart at the characters of COMP_WORDBREAKS, a colon among them, and completes the last
# part alone: orlop is told of them, and answers with just that part.
_BASH = r"""# Completion of orlop for bash; "orlop completion bash" prints it.
_orlop_completion() {
    local line type value
    COMPREPLY=()
    while IFS= read -r line; do
        type=${line%%$'\t'*} line=${line#*$'\t'}
        value=${line%%$'\t'*}
        case $type in
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
            plain)
                COMPREPLY+=("$value")
                case $value in */ | *: | *=) compopt -o nospace 2>/dev/null ;; esac
                ;;
        esac
    done < <(_ORLOP_LINE=${COMP_LINE:0:COMP_POINT} _ORLOP_BREAKS=$COMP_WORDBREAKS \
        _ORLOP_COMPLETE=bash_complete "$1" 2>/dev/null)
}
complete -o nosort -F _orlop_completion orlop 2>/dev/null || complete -F _orlop_completion orlop
"""

_ZSH = r"""#compdef orlop
# Completion of orlop for zsh; "orlop completion zsh" prints it.
_orlop_completion() {
    local line type value help
    local -a values shown open_values open_shown
    while IFS= read -r line; do
        type=${line%%$'\t'*} line=${line#*$'\t'}
        value=${line%%$'\t'*} help=${line#*$'\t'}
        case $type in
            dir) _files -/ ;;
            file) _files ;;
            plain)
                if [[ $value == *[/:=] ]]; then
                    open_values+=("$value") open_shown+=("$value${help:+  -- $help}")
                else
                    values+=("$value") shown+=("$value${help:+  -- $help}")
                fi
                ;;
        esac
    done < <(_ORLOP_LINE="${(j: :)words[1,CURRENT-1]} $PREFIX" _ORLOP_COMPLETE=zsh_complete \
        "${(Q)words[1]}" 2>/dev/null)
    (( $#values )) && compadd -V orlop -l -d shown -a values
    (( $#open_values )) && compadd -V orlop-open -S '' -l -d open_shown -a open_values
    return 0
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _orlop_completion "$@"
else
    compdef _orlop_completion orlop
fi
"""

_FISH = r"""# Completion of orlop for fish; "orlop completion fish" prints it.
function _orlop_completion
    set -l words (commandline -opc)
    set -l answer (env _ORLOP_LINE=(commandline -cp | string collect) _ORLOP_COMPLETE=fish_complete \
        $words[1] 2>/dev/null)
    for line in $answer
        set -l parts (string split \t -- $line)
        switch $parts[1]
            case dir
                __fish_complete_directories (commandline -ct)
            case file
                __fish_complete_path (commandline -ct)
            case plain
                printf '%s\t%s\n' $parts[2] "$parts[3]"
        end
    end
end
complete --keep-order --no-files --command orlop --arguments '(_orlop_completion)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}


@verb(
    "completion",
    'eval "$(orlop completion bash)"                                        in ~/.bashrc',
    "orlop completion bash > ~/.local/share/bash-completion/completions/orlop",
    "orlop completion zsh > ~/.zfunc/_orlop         with a folder of $fpath, before compinit",
    "orlop completion fish > ~/.config/fish/completions/orlop.fish",
)
@click.argument("shell", metavar="bash|zsh|fish", type=click.Choice(sorted(SCRIPTS)))
def completion_verb(shell: str) -> None:
    """Print what makes a shell complete verbs, options, images and paths.

    Paths are those of prepared roots, and of files in images.  The completions ask the store or the daemon
    that the line names, and say nothing where there is none.
    """
    output.write(SCRIPTS[shell])
