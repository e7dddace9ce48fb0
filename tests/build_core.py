"""An engine's core without its thread, so that a test says when a unit of work is computed, and counts work itself."""

import itertools

from slm_edge.edge.errors import EngineError
from slm_edge.edge.scheduler.adapters import Adapters
from slm_edge.edge.scheduler.core import Core
from slm_edge.edge.scheduler.front import Front

# Work of a prompt's token, of a step, of each row in it, and of a change of adapters
TOKEN, STEP, ROW, SWAP = 1.0, 4.0, 1.0, 2.0


class Counted:
    """Rows that compute as ever and count what they computed, in place of a clock."""

    def __init__(self, rows):
        self._rows = rows
        self.work = 0.0
        self.by_row = {}
        self._adapters = None

    def __getattr__(self, name):
        return getattr(self._rows, name)

    def _swap(self, row):
        now = self._rows._adapters[row]
        self.work += SWAP if self._adapters not in (None, now) else 0.0
        self._adapters = now

    def fill(self, row, prompt, sections, *more):
        filling = self._rows.fill(row, prompt, sections, *more)
        at = next(filling)
        yield at
        for end in filling:
            self._swap(row)
            self.work += TOKEN * (end - at)
            at = end
            yield at

    def step(self, token_ids, sequences, *more):
        self._swap(sequences[0])
        self._rows.step(token_ids, sequences, *more)
        self.work += STEP + ROW * len(sequences)


class Direct:
    """Requests to a session's core, computed by `unit`."""

    def __init__(self, session, n_rows, **options):
        self.session = session
        self.ended = []
        self.adapters = Adapters(session.adapters)
        self.front = Front(session)
        make = session.row_maker()
        self.rows = None

        def counted(*sizes):
            self.rows = Counted(make(*sizes))
            return self.rows

        session.row_maker = lambda: counted
        self.core = Core(
            session, n_rows, self.ended.append, clock=lambda: self.rows.work if self.rows else 0.0, **options
        )
        self._numbers = itertools.count()

    def submit(self, prompt, adapter=None, *, system=None, key="", n_top=None, **settings):
        bound = self.adapters.bind(adapter)
        job = self.front.job(
            prompt,
            bound,
            None,
            next(self._numbers),
            system=system,
            key=key,
            n_top=n_top,
            settings=settings,
            cancel=lambda ticket: None,
        )
        self.core.add(job)
        return job

    def run(self):
        while self.core.busy:
            self.core.work()

    def answer(self, *args, **settings):
        job = self.submit(*args, **settings)
        self.run()
        return job.ticket.result()


def error_of(job):
    """What a request failed on."""
    try:
        job.ticket.result(0)
    except EngineError as error:
        return error
    return None
