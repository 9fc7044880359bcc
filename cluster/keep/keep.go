// Package keep is how a leader keeps things in a member cluster as they should be: what was touched is looked at, and what failed is looked at again, later and later.
package keep

import (
	"context"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

// The first pause after a failure, and the longest.
const shortest, Longest = time.Second, time.Minute

// parallel is how many objects are looked at at once.
const parallel = 8

// ID is the namespace and the name of an object.
type ID = [2]string

// Attempt is at an object, or at a part of it that is tried on its own: the one does not wait for the other.
type Attempt struct {
	Of   ID
	Part string // "" = all else
}

// try is what came of the last attempt at something that is not as it should be.
type try struct {
	problem string
	pause   time.Duration
	next    time.Time
}

// Queue holds what is to be looked at, and what failed. Its methods may be called from any goroutine.
type Queue struct {
	mu    sync.Mutex
	dirty map[ID]bool
	wake  chan struct{}
	tries map[Attempt]try
}

// NewQueue makes an empty queue.
func NewQueue() *Queue {
	return &Queue{dirty: map[ID]bool{}, wake: make(chan struct{}, 1), tries: map[Attempt]try{}}
}

// Touch has an object looked at; it does not block.
func (q *Queue) Touch(namespace, name string) {
	q.mu.Lock()
	q.dirty[ID{namespace, name}] = true
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Work looks at what is due, some at a time, until ctx ends.
func (q *Queue) Work(ctx context.Context, look func(ID)) {
	retry := time.NewTicker(shortest)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-q.wake:
		case <-retry.C:
		}
		var under errgroup.Group
		under.SetLimit(parallel)
		for _, id := range q.Due() {
			under.Go(func() error { look(id); return nil })
		}
		_ = under.Wait() // its functions give no errors
	}
}

// Due takes the objects that were touched, and those of which something is to be tried again.
func (q *Queue) Due() []ID {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for a, t := range q.tries {
		if !now.Before(t.next) {
			q.dirty[a.Of] = true
		}
	}
	var out []ID
	for id := range q.dirty {
		if now.Before(q.tries[Attempt{Of: id}].next) {
			continue // stays dirty
		}
		out = append(out, id)
		delete(q.dirty, id)
	}
	return out
}

// Waits tells whether an attempt failed and is not to be made again yet.
func (q *Queue) Waits(a Attempt) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return time.Now().Before(q.tries[a].next)
}

// Note takes up what came of an attempt. It tells whether that is news: another failure than before, or none any more.
func (q *Queue) Note(a Attempt, err error) (news bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	old, failed := q.tries[a]
	if err == nil {
		delete(q.tries, a)
		return failed
	}
	pause := min(max(2*old.pause, shortest), Longest)
	q.tries[a] = try{err.Error(), pause, time.Now().Add(pause)}
	return old.problem != err.Error()
}

// Failed gives what is wrong with the parts of an object that were tried on their own.
func (q *Queue) Failed(id ID) map[string]string {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := map[string]string{}
	for a, t := range q.tries {
		if a.Of == id && a.Part != "" {
			out[a.Part] = t.problem
		}
	}
	return out
}
