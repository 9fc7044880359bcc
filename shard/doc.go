// Package shard decides who compiles what, and runs it.
//
// The shard table lives in the replicated state machine: a row is one range of the namespace-hash space of one member cluster, with the session
// that owns it and an epoch that fences its writes. Only the leader changes the table (Plan, a pure function, and Leader, its edge),
// by compare-and-set. No replica ever computes ownership on its own: it reads the table and runs one Controller for each row that it owns.
//
// An owner is a session, not a replica: replica id, "@" and a number that is new at every start. So a replica that was killed and comes back
// within the silence limit does not go on writing under an epoch whose sequence it has forgotten; its rows are given to the new session at once.
//
// Raw FNV-1a of names such as team-001 is badly skewed in its high bits (all of a hundred names fall into one of 256 equal ranges), so ranges are
// cut at quantiles of the namespaces that are there, and split when what is there has changed.
package shard
