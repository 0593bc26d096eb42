"""Seeds that once failed, and what they found. They are played for ever.

A seed is a history only as long as the simulator draws the same from it: where a change to the simulator changes what a
seed does, the note is what is left of it, and the planted bug of that name shows that it would be found again.
"""

KEPT: dict[int, str] = {
    0: "deadlines of leases compared with another rounding than they were waited for: the driver spun",
    86: "an entry that recovery read, but nobody had synced, was counted and then lost in a power cut",
    103: "the same, after a sync that failed",
    347: "two servers that opened at once shared the name of a temporary file, and one renamed the other's half",
    474: "a server that died while the run was closed: the driver raised ConnectionError",
    1005: "a writer that was overtaken woke and renamed its snapshot over the last one of a run that was closed",
    2451: "as 474",
    2835: "a server that was started again was ahead of a lost answer: leases named a version that was gone, for ever",
    3259: "as 474",
}
TAKEOVERS: dict[int, str] = {
    38: "a writer that was overtaken woke and renamed its snapshot over a newer one, behind a journal that was trimmed",
}
