"""Helpers that import no other package of the agent: errors, back-off, units, types of config values, safe XML.

Start at `units`, on which the types of config values build. Other modules stand alone. A helper that only one package needs belongs to that
package.
"""
