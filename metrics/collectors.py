"""What is kept of the features of many images while they stream by: little, whatever their number.

A collector is made with the number of rows that will come, `add`s batches of rows in order, and is then what a metric
reads. `needs` says which rows: a network's 'features' or its class 'probabilities'. Those that `save` and `load`, and say
so by `keeps`, are kept for the next run when they describe real images.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np

CHUNK = 512          # rows gathered before they are worked in


class Collector:
    """Base: gathers rows into chunks of CHUNK and hands them to `work_in`; `count` is how many have come."""
    needs = 'features'
    keeps = False

    def __init__(self, total):
        self.total, self.count = total, 0
        self._waiting = []

    def add(self, rows):
        """Take rows float32 [n, F], all finite (ValueError)."""
        rows = np.asarray(rows)
        if not np.isfinite(rows).all():
            raise ValueError('features must be finite')
        self._waiting.append(rows)
        self.count += len(rows)
        if sum(map(len, self._waiting)) >= CHUNK:
            self.flush()

    def flush(self):
        """Work in what is waiting."""
        if self._waiting:
            rows, self._waiting = np.concatenate(self._waiting), []
            self.work_in(rows)

    def work_in(self, rows):
        """Work rows [n, F] in: the part that differs."""
        raise TypeError(f'{type(self).__name__} does not define work_in')

    @property
    def num_retained(self):
        """Numbers held in memory."""
        return sum(rows.size for rows in self._waiting)

    def close(self):
        """Give back what is held outside memory."""


class Moments(Collector):
    """`mean` [F] and `covariance` [F, F] in float64, by the pairwise update of Chan, Golub and LeVeque (1979), which loses
    no digits to a mean far from zero."""
    keeps = True

    def __init__(self, total=None):
        super().__init__(total)
        self._seen, self._mean, self._scatter = 0, None, None

    def work_in(self, rows):
        """Merge the moments of a chunk."""
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0)
        centred = rows - mean
        scatter = centred.T @ centred
        if self._mean is None:
            self._seen, self._mean, self._scatter = len(rows), mean, scatter
            return
        total, shift = self._seen + len(rows), mean - self._mean
        self._scatter += scatter
        self._scatter += np.outer(shift, shift * (self._seen * len(rows) / total))
        self._mean = self._mean + shift * (len(rows) / total)
        self._seen = total

    @property
    def mean(self):
        """float64 [F]."""
        self.flush()
        return self._mean

    @property
    def covariance(self):
        """float64 [F, F] with the divisor n - 1; ValueError for fewer than two rows."""
        self.flush()
        if self._seen < 2:
            raise ValueError(f'a covariance needs at least 2 rows, got {self._seen}')
        return self._scatter / (self._seen - 1)

    @property
    def num_retained(self):
        return super().num_retained + (0 if self._mean is None else self._mean.size + self._scatter.size)

    def save(self, path):
        """Write to the file `path`."""
        self.flush()
        with open(path, 'wb') as file:
            np.savez(file, count=self._seen, mean=self._mean, scatter=self._scatter)

    @classmethod
    def load(cls, path, total):
        """The collector saved at `path`; ValueError or OSError if it is damaged or of another count."""
        with np.load(path, allow_pickle=False) as data:
            loaded = cls(total)
            loaded._seen, loaded._mean, loaded._scatter = int(data['count']), data['mean'], data['scatter']
        loaded.count = loaded._seen
        if loaded._seen != total or loaded._scatter.shape != (len(loaded._mean),) * 2:
            raise ValueError(f'{path}: not the moments of {total} rows')
        return loaded


class Rows(Collector):
    """All rows float32 [n, F], in a temporary file instead of in memory; `take` and `blocks` read some of them."""
    keeps = True

    def __init__(self, total=None):
        super().__init__(total)
        self._file = tempfile.TemporaryFile()
        self.num_features = None

    def work_in(self, rows):
        """Append to the file."""
        self.num_features = rows.shape[1]
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).tobytes())

    def __len__(self):
        return self.count

    def take(self, indices):
        """float32 [len(indices), F] of the rows with these numbers, below the count."""
        self.flush()
        rows = np.empty([len(indices), self.num_features], dtype=np.float32)
        for row, index in zip(rows, indices):
            self._file.seek(int(index) * row.nbytes)
            self._file.readinto(memoryview(row).cast('B'))
        return rows

    def blocks(self, size):
        """Yield (start, float32 [at most size, F]) over all rows."""
        self.flush()
        for start in range(0, self.count, size):
            rows = np.empty([min(size, self.count - start), self.num_features], dtype=np.float32)
            self._file.seek(start * self.num_features * 4)
            self._file.readinto(memoryview(rows).cast('B'))
            yield start, rows

    def save(self, path):
        """Write to the file `path`: a row of [n, F], then the rows."""
        self.flush()
        self._file.seek(0)
        with open(path, 'wb') as file:
            np.array([self.count, self.num_features], dtype=np.int64).tofile(file)
            shutil.copyfileobj(self._file, file)

    @classmethod
    def load(cls, path, total):
        """The collector saved at `path`; ValueError or OSError if it is damaged or of another count."""
        count, num_features = (int(x) for x in np.fromfile(path, dtype=np.int64, count=2))
        if count != total or Path(path).stat().st_size != 16 + 4 * count * num_features:
            raise ValueError(f'{path}: not {total} rows')
        loaded = cls(total)
        loaded.num_features, loaded.count = num_features, count
        with open(path, 'rb') as file:
            file.seek(16)
            shutil.copyfileobj(file, loaded._file)
        return loaded

    def close(self):
        """Remove the file."""
        self._file.close()
