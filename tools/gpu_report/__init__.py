"""One command for whoever has a GPU: build, check, measure, report (`make gpu-report`).

    python -m tools.gpu_report [--minutes 6] [--device cuda]

It needs no network and installs nothing: the module is built with this interpreter, the pybind11
and the compilers of this machine, for the architecture of its GPU. Every part that may fail or hang
runs in a process of its own, within its share of the time (`plan`); what it found is written before
the next one starts (`results`). What fails is recorded with its traceback.

`sections` says which parts there are. Some are programs of others (`build`, `suite_run`,
`sanitizer`), others go case by case in a child process (`children`, `worker`): small problems
against float64 (`problems`), the cases of the benchmark's suites (`cases`, `contenders`), and what
a call costs the host (`calls`). Whose kernels run there is what the plans of the calls say
(`families`, `probes`). `markdown` and `pictures` show a record, also one of before (`--show`).

With `--device emulated` the kernel emulator takes the place of the GPU, at toy sizes: nothing is
compiled, and the times are the emulator's.
"""
