package shard

import (
	"fmt"

	"github.com/fleetgate/fleetgate/cluster/store"
	"github.com/fleetgate/fleetgate/translate/record"
)

// Guard bounds what a sweep may delete at once (D10). What it holds stays served and is reported; it is looked at again with every event.
//
// A row is too small to judge by: a cluster has up to 64 of them, so one that lost everything is a team that moved as often as an API server that was
// emptied. So a row asks for witnesses that every replica has:
//   - The cluster's GatewayClasses. They are few, watched by everybody, and hardly ever deleted; an emptied or wrong API server, CRDs that were
//     deleted and made anew, and a directory that was mounted empty all lack every one of them. Where none is left nothing is deleted, be the row
//     ever so small, and bringing one back is how a person says that the rest is meant.
//   - The routes of all rows that this session owns in the cluster, which is about its share of the whole. A row that lost all of its routes while the
//     others kept theirs is believed; where most are gone everywhere, as after an old backup was restored, nothing is deleted.
//
// Below Min routes a loss is believed: on a laptop people do delete two routes of three while nothing runs.
type Guard struct {
	Share float64 // of the routes of this session's rows in the cluster; 0 = no guard
	Min   int     // never hold fewer deleted routes than this
}

// census is what the store has of a cluster, and what of that is not there any more.
type census struct{ classes, classesGone, routes, routesGone int }

// holds says why deletions must wait, "" if they need not.
func (g Guard) holds(n census) string {
	switch {
	case g.Share <= 0:
		return ""
	case n.classes > 0 && n.classesGone == n.classes:
		return fmt.Sprintf("none of the cluster's %d GatewayClasses is there any more, which looks like an empty or a wrong API server or directory. Everything stays as it was; "+
			"mend the cluster, or apply a GatewayClass again if the rest was meant to be deleted", n.classes)
	case n.routesGone >= g.Min && float64(n.routesGone) > g.Share*float64(n.routes):
		return fmt.Sprintf("%d of %d routes would be deleted at once, after a time in which nobody watched. They stay as they were; mend the cluster, or put them back and "+
			"delete them while this replica watches", n.routesGone, n.routes)
	}
	return ""
}

// takeCensus counts what the guard judges by.
func (c *Controller) takeCensus() (n census, err error) {
	_, rows := c.db.Table()
	ours := func(namespace string) bool {
		row, ok := rowOf(rows, c.row.Cluster, namespace)
		return ok && row.Owner == c.session
	}
	err = c.db.Scan(func(r *store.Record) error {
		if r.Key.Cluster != c.row.Cluster {
			return nil
		}
		gone := 0
		if !c.seen(RecordKey(r.Key)) {
			gone = 1
		}
		switch {
		case r.Key.Kind == string(record.KindClass):
			n.classes++
			n.classesGone += gone
		case r.Key.Kind == string(record.KindRoute) && ours(r.Key.Namespace):
			n.routes++
			n.routesGone += gone
		}
		return nil
	})
	return n, err
}
