package cluster

import "testing"

// TestJudge: a majority decides which state is right.
func TestJudge(t *testing.T) {
	same, other, late := view{}, view{differs: true}, view{skewed: true}
	for _, c := range []struct {
		name string
		poll poll
		view view
		want judgement
	}{
		{"all agree", poll{voters: 3, agree: 3}, same, fits},
		{"nobody heard of yet", poll{voters: 3, agree: 1}, same, fits},
		{"one of three differs", poll{voters: 3, agree: 2, differ: 1}, other, nodeDiffers},
		{"one of three differs, another asks", poll{voters: 3, agree: 2, differ: 1}, same, fits},
		{"one of three differs, the third is silent", poll{voters: 3, agree: 1, differ: 1}, other, nobodyKnows},
		{"one of three differs, the third is silent, the leader asks", poll{voters: 3, agree: 1, differ: 1}, same, nobodyKnows},
		{"two of three differ", poll{voters: 3, agree: 1, differ: 2}, other, leaderDiffers},
		{"two of three differ, the leader asks", poll{voters: 3, agree: 1, differ: 2}, same, leaderDiffers},
		{"two of five differ", poll{voters: 5, agree: 3, differ: 2}, other, nodeDiffers},
		{"three of five differ", poll{voters: 5, agree: 2, differ: 3}, same, leaderDiffers},
		{"one of two differs", poll{voters: 2, agree: 1, differ: 1}, other, nobodyKnows},
		{"a non-voter differs", poll{voters: 3, agree: 3}, other, nodeDiffers},
		{"a clock differs", poll{voters: 3, agree: 3, skewed: 1}, late, clockDiffers},
		{"another's clock differs", poll{voters: 3, agree: 3, skewed: 1}, same, fits},
	} {
		if got := c.poll.judge(c.view); got != c.want {
			t.Errorf("%s: %d, want %d", c.name, got, c.want)
		}
	}
}
