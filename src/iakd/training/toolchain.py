"""The C++ compiler as torch.compile calls it, so that no process is left with half a library.

inductor (torch 2.13) lets the compiler write into its cache on disk and takes any file that is there for whole. Where a
signal hits all processes in the middle of that, as Ctrl-C and the end of a batch job do, what is left does not load in
the next process; or, where it was to show that the processor's vector instructions can be used, others are chosen
without a word. Either way a training that goes on need not compute what it would have computed.
"""

from pathlib import Path

from iakd import files

SCRIPT = """#!/bin/sh
# {compiler}, but what it makes is put in place when it is whole
out=
for argument do
    shift
    if [ "$last" = -o ]; then
        out=$argument
        argument=$argument.$$
    fi
    last=$argument
    set -- "$@" "$argument"
done
{compiler} "$@"
status=$?
if [ -n "$out" ] && [ $status = 0 ]; then mv -f "$out.$$" "$out"; fi
exit $status
"""


def use_whole_outputs() -> None:
    """Have inductor call its C++ compiler through a script beside its cache."""
    from torch._inductor import config
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    none, compiler = config.cpp.cxx
    folder = Path(cache_dir()) / "iakd"
    if Path(compiler).parent != folder:
        config.cpp.cxx = (none, str(whole_outputs(compiler, folder)))


def whole_outputs(compiler: str, folder: Path) -> Path:
    """A script in `folder` that calls the compiler. Its name is the compiler's: inductor tells them apart by it."""
    path = folder / Path(compiler).name
    text = SCRIPT.format(compiler=compiler)
    if not path.exists() or path.read_text() != text:
        with files.atomic_path(path, 0o755) as temporary:
            temporary.write_text(text)
    return path
