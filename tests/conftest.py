"""The campaign of faults: `LSFD_LONG=20 python -m pytest -m faults` tries twenty times as much as the tests do otherwise. One table at the end, of what was tried and ended as it should."""
import os, sys

sys.modules['campaign'] = sys.modules[__name__]    # for the tests: from campaign import TIMES, count
TIMES = int(os.environ.get('LSFD_LONG') or 1)
COUNTS = {}

BEFORE = {   # of the first campaign, at commit e1777a1
    'runs killed at random, twice each': '28 of 28', 'runs killed at a write': '28 of 28, files left in 12', 'SIGTERM and SIGINT in a step: saved': 'not saved',
    'papermill killed, notebook run again': '21 of 21', 'ranks of a killed launcher: saved and gone': '0 of 4', 'rows of killed writers': '228 of 228',
    'two processes, resume=False: scored': '0 of 1', 'a full disk at a write: one error that names it': "the libraries' words", 'rows on a full disk: there or refused': 'half rows, reported as written',
    'files after a power cut, ext4 defaults': '3 of 3', 'files after a power cut, ext4 noauto_da_alloc': '0 of 4', 'files after a power cut, xfs defaults': '0 of 3',
    'run.pt with a flipped bit: itself, or the one before': '1 of 12', 'run.pt empty, cut, zeros, noise: the one before': 'refused, no state before it', 'states with parts missing, of other shapes, of the future': '0 of 8',
    'checkpoints with a flipped bit: never other weights': '38 of 78', 'checkpoints mutated': '705 of 711, with the next line', 'damaged lines of the ledger': '20 of 25', 'damaged logs': '3 of 14',
    'images mutated': '1785 of 1785', 'parameter sets': '1413 of 1500', 'hostile servers': '17 of 21', 'ledgers of four writers': 'no row of 16,000 lost',
    'locks of a process that hangs': 'for ever, silently', 'a second run after .lock was removed': 'let in', 'limits of memory: named, or tiles': '1 of 5', 'explosions: what is saved is near what it began with': '0 of 1'}

def count(what, right=True):
    "Note one attempt, and whether it ended as it should."
    tried, good = COUNTS.get(what, (0, 0))
    COUNTS[what] = tried + 1, good + bool(right)
    return right

def pytest_configure(config): config.addinivalue_line('markers', 'faults: part of the campaign of faults')

def pytest_sessionfinish(session):
    if hasattr(session.config, 'workeroutput'): session.config.workeroutput['counts'] = COUNTS      # of a worker of pytest-xdist,

def pytest_testnodedown(node, error):                                                                # to the one that prints
    for what, pair in getattr(node, 'workeroutput', {}).get('counts', {}).items():
        COUNTS[what] = tuple(map(sum, zip(COUNTS.get(what, (0, 0)), pair)))

def pytest_terminal_summary(terminalreporter):
    if not COUNTS: return
    terminalreporter.section('faults: right of tried, first campaign and now')
    for what, (tried, good) in COUNTS.items(): terminalreporter.line(f'{what:62} {BEFORE.get(what.strip(), ""):32} {good:5} of {tried}')
