"""Contracts that every method and every kind of label has to meet, for testing your own.

Derive a test class, say what to test, and let pytest collect it:

```python
class TestMine(MethodContract):
    method = MeanField()

class TestCounts(LikelihoodContract):
    likelihood = Counts()
    num_outputs = 1
```
"""

from bayeslora.networks import inputs_of
from bayeslora.testing.likelihood import LikelihoodContract
from bayeslora.testing.method import MethodContract
from bayeslora.testing.small import FAILURE_RATE, small_batch, small_network

__all__ = ["FAILURE_RATE", "LikelihoodContract", "MethodContract", "inputs_of", "small_batch", "small_network"]
