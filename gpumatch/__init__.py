"""gpumatch finds, in a lake of tables, the tables that each query table can be joined or unioned with."""

__version__ = "0.1.0"
