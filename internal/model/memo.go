package model

import (
	"iter"
	"maps"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What is made from objects is kept from one Build to the next together with
// what was read to make it, and made anew when any of that has changed. Nobody
// has to say, or can forget, what depends on what: whoever wants to read an
// object has to go through an index, and that takes note.

// index holds the objects of one kind by key. The zero index is empty.
type index[V any] struct{ cells map[Key]*cell[V] }

// cell is an object, or the place where one is missing: that it is not there is
// worth knowing, too.
type cell[V any] struct {
	state

	value  V
	listed uint64 // the last build whose inputs had it; 0: it is missing
}

// state tells when something changed.
type state struct {
	// changed is the build with which it came to be what it is, and used the last
	// one in which anything depended on it.
	changed, used uint64
}

// reads are what was read to make something.
type reads []*state

// unchanged tells whether nothing of it has changed after a build.
func (r reads) unchanged(since, now uint64) bool {
	for _, read := range r {
		if read.changed > since {
			return false
		}
		read.used = now
	}
	return true
}

// get returns the value of a key, or zero, and notes that it was read.
func (x *index[V]) get(by *reads, now uint64, key Key) V {
	held := x.cells[key]
	if held == nil {
		held = &cell[V]{}
		x.put(key, held)
	}
	held.used = now
	*by = append(*by, &held.state)
	return held.value
}

// peek is get for who looks anew in each build, whatever has changed.
func (x *index[V]) peek(key Key) (value V) {
	if held := x.cells[key]; held != nil {
		value = held.value
	}
	return value
}

func (x *index[V]) put(key Key, held *cell[V]) {
	if x.cells == nil {
		x.cells = map[Key]*cell[V]{}
	}
	x.cells[key] = held
}

// update takes the objects of a build, and tells whether any of them is new,
// gone, or not the same as before.
func (x *index[V]) update(now uint64, objects iter.Seq2[Key, V], same func(a, b V) bool) (changed bool) {
	for key, object := range objects {
		held := x.cells[key]
		if held == nil {
			held = &cell[V]{}
			x.put(key, held)
		}
		if held.listed == 0 || !same(held.value, object) {
			held.value, held.changed, changed = object, now, true
		}
		held.listed = now
	}
	for key, held := range x.cells {
		if held.listed == now {
			continue
		}
		if held.listed != 0 {
			var none V
			held.value, held.listed, held.changed, changed = none, 0, now, true
		}
		if held.used+1 < now {
			delete(x.cells, key) // nobody waits for it
		}
	}
	return changed
}

// byKey goes over objects with their keys.
func byKey[T metav1.Object](objects []T) iter.Seq2[Key, T] {
	return func(yield func(Key, T) bool) {
		for _, object := range objects {
			if !yield(keyOf(object), object) {
				return
			}
		}
	}
}

type object interface {
	comparable
	metav1.Object
}

// sameSpec tells whether two versions of an object are the same to who does not
// look at its status, for kinds of which an API server counts the generations.
func sameSpec[T object](a, b T) bool {
	return a == b || a.GetUID() != "" && a.GetUID() == b.GetUID() &&
		a.GetGeneration() != 0 && a.GetGeneration() == b.GetGeneration() &&
		maps.Equal(a.GetLabels(), b.GetLabels()) && maps.Equal(a.GetAnnotations(), b.GetAnnotations())
}

// sameVersion tells whether two versions of an object are one, for kinds without
// generations.
func sameVersion[T object](a, b T) bool {
	return a == b || a.GetUID() != "" && a.GetUID() == b.GetUID() &&
		a.GetResourceVersion() != "" && a.GetResourceVersion() == b.GetResourceVersion()
}
