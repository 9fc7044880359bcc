package store

import "sync"

// subscription is a lossless queue of events: a subscriber that is slow costs memory, never an event, and never holds up the log.
type subscription struct {
	mu     sync.Mutex
	queue  []Event
	wake   chan struct{}
	out    chan Event
	done   chan struct{}
	closed sync.Once
}

// Subscribe gives every event from now on, in order. cancel ends it; the channel is closed then, or when the store closes.
func (s *Store) Subscribe() (events <-chan Event, cancel func()) {
	sub := &subscription{wake: make(chan struct{}, 1), out: make(chan Event), done: make(chan struct{})}
	s.mu.Lock()
	if s.subs == nil { // closed
		sub.close()
	} else {
		s.subs[sub] = true
	}
	s.mu.Unlock()
	go sub.pump()
	return sub.out, func() {
		s.mu.Lock()
		delete(s.subs, sub)
		s.mu.Unlock()
		sub.close()
	}
}

func (u *subscription) close() { u.closed.Do(func() { close(u.done) }) }

func (u *subscription) push(events []Event) {
	u.mu.Lock()
	u.queue = append(u.queue, events...)
	u.mu.Unlock()
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

func (u *subscription) pump() {
	defer close(u.out)
	for {
		u.mu.Lock()
		batch := u.queue
		u.queue = nil
		u.mu.Unlock()
		for _, e := range batch {
			select {
			case u.out <- e:
			case <-u.done:
				return
			}
		}
		if len(batch) > 0 {
			continue
		}
		select {
		case <-u.wake:
		case <-u.done:
			return
		}
	}
}

// publish hands events to all; the caller holds mu.
func (s *Store) publish(events []Event) {
	if len(events) == 0 {
		return
	}
	for sub := range s.subs {
		sub.push(events)
	}
	close(s.change)
	s.change = make(chan struct{})
}
