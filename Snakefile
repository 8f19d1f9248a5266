"""Every table and figure of the paper:   snakemake --cores 2 --config profile=smoke
What will be made, and how long it takes:   add -n.   On a Slurm cluster:   add --executor slurm --jobs 20."""
import sys
from pathlib import Path
from lsfd.system import bundled
from lsfd.train import PROFILES
from lsfd.workflow import code_of, estimate, merge

configfile: "grid.yaml"
P = config.get("profile", "smoke")
if P not in PROFILES: sys.exit(f"profile={P!r}: choose one of {', '.join(PROFILES)}")
G = config[P]
OUT = config.get("out", f"runs/grid/{P}")
METHODS = G["methods"].split(",")
FIGURES = "table1 tables ablations fig1 figs2_3 figs4_6 errata claims".split()
LOSSES = ("lsfd.losses.lfd", "lsfd.losses.lsfd", "lsfd.losses.fakd", "lsfd.losses.fft", "lsfd.losses.at", "lsfd.losses.dukd", "lsfd.regressors", "lsfd.ablations")
SHOWN = ("lsfd.lam", "lsfd.lamplots", "lsfd.explore", "lsfd.plots", "lsfd.paired", "lsfd.report", "lsfd.bench", "lsfd.efficiency")
JOB = "python -m lsfd.workflow papermill {input.notebook} {output.notebook} -k python3 --no-progress-bar --log-output"

wildcard_constraints: model="[a-z]+", scale="[234]", seed="[0-9]+", name="[a-z0-9_]+"

def teacher(w):
    "The teacher of a student: the one that comes with lsfd where the profile is small and there is one, else one that is trained."
    ready = bundled(f"checkpoints/{w.model}_teacher_demo_x{w.scale}.safetensors")
    return str(ready) if P in ("smoke", "demo") and ready.is_file() else f"{OUT}/{w.model}_teacher_x{w.scale}/teacher.safetensors"

STUDENTS = [(m, s, seed) for m in G["models"] for s in G["scales"] for seed in G["seeds"]]
def ledgers(w): return [f"{OUT}/{m}_x{s}_seed{seed}/ledger.jsonl" for m, s, seed in STUDENTS]

def missing():
    "The trainings that have left no result yet, as (role, model, steps)."
    from types import SimpleNamespace as W
    usual = PROFILES[P].steps
    teachers = {teacher(W(model=m, scale=s)): m for m, s, _ in STUDENTS}
    yield from (("teacher", m, G["teacher_steps"] or usual) for path, m in teachers.items() if not Path(path).is_file())
    yield from (("student", m, G["steps"] or usual) for m, s, seed in STUDENTS if not Path(f"{OUT}/{m}_x{s}_seed{seed}/ledger.jsonl").is_file())

if workflow.is_main_process: print(estimate(list(missing()), P), file=sys.stderr)

rule all:
    input: expand(f"{OUT}/figures/{{name}}.ipynb", name=FIGURES)

rule teacher:
    input: notebook=ancient("nbs/train.ipynb")
    output: weights=f"{OUT}/{{model}}_teacher_x{{scale}}/teacher.safetensors", notebook=f"{OUT}/{{model}}_teacher_x{{scale}}/train.ipynb"
    params: code=code_of("nbs/train.ipynb", without=LOSSES + SHOWN), data=G["data"], benchmark=G["benchmark"], steps=G["teacher_steps"], profile=P,
            out=lambda w, output: str(Path(output.weights).parent)
    resources: gpu=1
    shell: JOB + " -p role teacher -p model {wildcards.model} -p scale {wildcards.scale} -p profile {params.profile} -p data {params.data}"
           " -p benchmark {params.benchmark} -p steps {params.steps} -p out {params.out} -p ledger {params.out}/ledger.jsonl"

rule students:
    input: notebook=ancient("nbs/compare.ipynb"), teacher=teacher
    output: ledger=f"{OUT}/{{model}}_x{{scale}}_seed{{seed}}/ledger.jsonl", notebook=f"{OUT}/{{model}}_x{{scale}}_seed{{seed}}/compare.ipynb"
    params: code=code_of("nbs/compare.ipynb", without=SHOWN), data=G["data"], benchmark=G["benchmark"], steps=G["steps"], profile=P, methods=G["methods"],
            out=lambda w, output: str(Path(output.ledger).parent)
    resources: gpu=1
    shell: JOB + " -p model {wildcards.model} -p scale {wildcards.scale} -r seeds {wildcards.seed} -p methods {params.methods} -p profile {params.profile}"
           " -p data {params.data} -p benchmark {params.benchmark} -p steps {params.steps} -p teacher {input.teacher} -p out {params.out} -p ledger {output.ledger}"

rule ledger:
    input: ledgers
    output: f"{OUT}/ledger.jsonl"
    run: merge(output[0], input)

rule figure:
    input: notebook=ancient("nbs/paper/{name}.ipynb"), ledger=f"{OUT}/ledger.jsonl"
    output: notebook=f"{OUT}/figures/{{name}}.ipynb"
    params: code=lambda w: code_of(f"nbs/paper/{w.name}.ipynb"), out=f"{OUT}/figures",
            given=lambda w, input: " ".join(f"-p {k} {v}" for k, v in dict(ledger=input.ledger, students=OUT, profile="smoke" if P == "smoke" else "measure").items() if k in GIVEN[w.name])
    shell: JOB + " -p out {params.out} {params.given}"

GIVEN = dict(table1=["profile"], tables=["ledger"], ablations=["ledger"], fig1=["profile", "students"], figs2_3=["students"], figs4_6=["students"], errata=[], claims=["ledger"])
