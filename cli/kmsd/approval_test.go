package main

import (
	"testing"
)

func TestThin(t *testing.T) {
	c := startCluster(t, 2)
	_ = c
}
