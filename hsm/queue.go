package hsm

// link is the place of one item in a queue. It belongs to the item, so that
// queueing allocates nothing.
type link[T any] struct {
	prev, next *link[T] // nil while in no queue
	item       T
}

// queue is a first-in, first-out queue from which any item can leave.
type queue[T any] struct {
	root link[T] // root.next is the front, root.prev the back
}

// push appends l, which is in no queue.
func (q *queue[T]) push(l *link[T]) {
	if q.root.next == nil {
		q.root.next, q.root.prev = &q.root, &q.root
	}
	l.prev, l.next = q.root.prev, &q.root
	l.prev.next, l.next.prev = l, l
}

// remove takes l out of the queue it is in.
func (q *queue[T]) remove(l *link[T]) {
	l.prev.next, l.next.prev = l.next, l.prev
	l.prev, l.next = nil, nil
}

// front is the item that came first; false if the queue is empty.
func (q *queue[T]) front() (item T, ok bool) {
	if q.root.next == nil || q.root.next == &q.root {
		return item, false
	}
	return q.root.next.item, true
}
