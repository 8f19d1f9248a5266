"""Every table and figure of the paper:   snakemake --cores 2 --config profile=smoke
What will be made, and how long it takes:   add -n.   On a Slurm cluster:   add --executor slurm --jobs 20, and gpu=1 after --config for a GPU each."""
import sys
from pathlib import Path
from types import SimpleNamespace as Names
from torch.cuda import is_available
from lsfd.runs import as_name
from lsfd.train import PROFILES
from lsfd.workflow import code_of, estimate, merge

configfile: "grid.yaml"
P = config.get("profile", "smoke")
if P not in PROFILES: sys.exit(f"profile={P!r}: choose one of {', '.join(PROFILES)}")
G = config[P]
OUT = config.get("out", f"runs/grid/{P}")
GPU = config.get("gpu", int(is_available()))
METHODS = G["methods"].split(",")
STUDENTS = [(m, s, seed) for m in G["models"] for s in G["scales"] for seed in G["seeds"]]

# what a result does not depend on, though its notebook can reach it
LOSSES = (*sorted(f"lsfd.losses.{p.stem}" for p in Path("lsfd/losses").glob("*.py") if p.stem not in ("__init__", "sr")), "lsfd.regressors", "lsfd.ablations")
SHOWN = ("lsfd.lam", "lsfd.lamplots", "lsfd.causal", "lsfd.explore", "lsfd.plots", "lsfd.paired", "lsfd.report", "lsfd.bench", "lsfd.efficiency")
TRAINED = ("lsfd.train", "lsfd.distill", "lsfd.data", "lsfd.models")   # what the weights depend on: another of these, and a run starts anew

# what each figure is made from
GIVEN = dict(table1=["profile"], tables=["ledger", "least_steps"], ablations=["ledger"], fig1=["profile", "students", "scale"], fig1_causal=["profile", "students", "scale"], figs2_3=["students", "scale"],
             figs4_6=["students"], errata=[], claims=["ledger", "least_steps", "figures"])

RUN, JOB = "python -m lsfd.workflow ", "papermill {input.notebook} {output.notebook} -k python3 --no-progress-bar --log-output"
FRESH = RUN + "fresh {params.out} {params.trained} {params.data} {params.steps} "

wildcard_constraints: model="[a-z]+", scale="[234]", seed="[0-9]+", name="[a-z0-9_]+"

def teacher(w):
    "The teacher of a student: the one that comes with lsfd where the profile is small and there is one, else one that is trained."
    ready = f"data/checkpoints/{w.model}_teacher_demo_x{w.scale}.safetensors"
    return ready if P in ("smoke", "demo") and Path(ready).is_file() else f"{OUT}/{w.model}_teacher_x{w.scale}/teacher.safetensors"

def of_students(file): return [f"{OUT}/{m}_x{s}_seed{seed}/{file}".format(seed=seed) for m, s, seed in STUDENTS]
def of_teachers(file):
    paths = {Path(teacher(Names(model=m, scale=s))).parent for m, s, _ in STUDENTS}
    return sorted(str(path/file) for path in paths if path != Path("data/checkpoints"))
def weights(): return [file for m in METHODS for file in of_students("seed{seed}/" + as_name(m) + ".safetensors")]

def needs(w):
    "What a figure is made from, beside its notebook."
    files = dict(ledger=[f"{OUT}/ledger.jsonl"], students=[w for w in weights() if "/rcan_x" in w], figures=[f"{OUT}/figures/{name}.ipynb" for name in ("fig1", "fig1_causal", "table1")])
    return [file for kind in GIVEN[w.name] for file in files.get(kind, [])]

def given(w):
    "The parameters of a figure's notebook."
    wanted = 2 if w.name == "figs2_3" else 4    # of the paper's figure
    values = dict(ledger=f"{OUT}/ledger.jsonl", students=OUT, profile="smoke" if P == "smoke" else "measure", scale=wanted if wanted in G["scales"] else G["scales"][0])
    if P == "smoke": values |= dict(least_steps=0)
    return " ".join(f"-p {k} {values[k]}" for k in GIVEN[w.name] if k in values)

def missing():
    "The trainings that have left no result yet, as (role, model, scale, steps, methods)."
    usual, teachers = PROFILES[P].steps, {teacher(Names(model=m, scale=s)): (m, s) for m, s, _ in STUDENTS}
    yield from (("teacher", m, s, G["teacher_steps"] or usual, ()) for path, (m, s) in teachers.items() if not Path(path).is_file())
    yield from (("student", m, s, G["steps"] or usual, METHODS) for (m, s, _), file in zip(STUDENTS, of_students("ledger.jsonl")) if not Path(file).is_file())

if workflow.is_main_process: print(estimate(list(missing()), P), file=sys.stderr)

onerror: print("A job has failed. Its error is above, the last lines of what its notebook printed. All that is done is kept: once the cause is gone,"
               " the same command goes on, trainings from the state they saved last; --unlock first if it was killed.", file=sys.stderr)

rule all:
    input: expand(f"{OUT}/figures/{{name}}.ipynb", name=GIVEN)

rule teacher:
    input: notebook=ancient("nbs/train.ipynb")
    output: weights=f"{OUT}/{{model}}_teacher_x{{scale}}/teacher.safetensors", notebook=f"{OUT}/{{model}}_teacher_x{{scale}}/train.ipynb",
            ledger=f"{OUT}/{{model}}_teacher_x{{scale}}/ledger.jsonl"
    params: code=code_of("nbs/train.ipynb", without=LOSSES + SHOWN), trained=code_of(*TRAINED, without=LOSSES + SHOWN),
            data=G["data"], benchmark=G["benchmark"], steps=G["teacher_steps"], profile=P, out=lambda w, output: str(Path(output.weights).parent)
    resources: gpu=GPU
    shell: FRESH + "-- " + JOB + " -p role teacher -p model {wildcards.model} -p scale {wildcards.scale} -p profile {params.profile} -p data {params.data}"
           " -p benchmark {params.benchmark} -p steps {params.steps} -p out {params.out} -p ledger {output.ledger}"

rule students:
    input: notebook=ancient("nbs/compare.ipynb"), teacher=teacher
    output: ledger=f"{OUT}/{{model}}_x{{scale}}_seed{{seed}}/ledger.jsonl", notebook=f"{OUT}/{{model}}_x{{scale}}_seed{{seed}}/compare.ipynb",
            weights=[f"{OUT}/{{model}}_x{{scale}}_seed{{seed}}/seed{{seed}}/{as_name(m)}.safetensors" for m in METHODS]
    params: code=code_of("nbs/compare.ipynb", without=SHOWN), trained=code_of(*TRAINED, without=SHOWN),
            data=G["data"], benchmark=G["benchmark"], steps=G["steps"], profile=P, methods=G["methods"], out=lambda w, output: str(Path(output.ledger).parent)
    resources: gpu=GPU
    shell: FRESH + "{params.methods} {input.teacher} -- " + JOB + " -p model {wildcards.model} -p scale {wildcards.scale} -r seeds {wildcards.seed}"
           " -p methods {params.methods} -p profile {params.profile} -p data {params.data} -p benchmark {params.benchmark} -p steps {params.steps}"
           " -p teacher {input.teacher} -p out {params.out} -p ledger {output.ledger}"

rule ledger:
    input: of_teachers("ledger.jsonl"), of_students("ledger.jsonl")
    output: f"{OUT}/ledger.jsonl"
    run: merge(output[0], input)

rule figure:
    input: needs, notebook=ancient("nbs/paper/{name}.ipynb")
    output: notebook=f"{OUT}/figures/{{name}}.ipynb"
    params: code=lambda w: code_of(f"nbs/paper/{w.name}.ipynb"), out=f"{OUT}/figures", given=given
    shell: RUN + JOB + " -p out {params.out} {params.given}"
