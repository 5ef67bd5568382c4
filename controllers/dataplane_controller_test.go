package controllers

import (
	"testing"
	"time"

	"meshroute.io/meshroute/internal/model"
)

func TestNoticedIsTheFirstEvent(t *testing.T) {
	var n noticed
	at := func(s int64) time.Time { return time.Unix(s, 0) }
	shop := dataplaneRequest{Service: model.Key{Namespace: "shop", Name: "front"}}
	n.note(shop, at(2))
	n.note(shop, at(3))
	n.note(dataplaneRequest{}, at(5))
	if got := n.take(shop, at(9)); got != at(2) {
		t.Errorf("the first event of a request came at %v", got)
	}
	if got := n.take(shop, at(9)); got != at(9) {
		t.Errorf("taken twice: %v", got)
	}
	// A build that could not be made is as old as it was, whatever came meanwhile.
	began := n.take(dataplaneRequest{}, at(9))
	n.note(dataplaneRequest{}, at(10))
	n.note(dataplaneRequest{}, began)
	if got := n.take(dataplaneRequest{}, at(11)); got != at(5) {
		t.Errorf("a build that is made again is for news of %v", got)
	}
}
