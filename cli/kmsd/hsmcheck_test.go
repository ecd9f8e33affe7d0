package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

// suitePatience is for the conformance suite, which makes RSA keys of 4096 bits.
const suitePatience = 10 * time.Minute

// TestHSMCheck checks a token as an operator would: first without a trace, then as a scratch
// token with the whole conformance suite, which leaves nothing behind.
func TestHSMCheck(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 2)
	p := c.nodes[0]
	check := func(args ...string) (string, int) {
		t.Helper()
		return kmsdWithin(t, suitePatience, p.env, append([]string{"hsm", "check", "--token", p.name, "--pin-file", p.path("pin")}, args...)...)
	}
	before := objects(t, p.path("tokens"))
	out, code := check("--read-only", "--output", "json")
	var found struct {
		Passed bool
		Needs  []struct {
			Name              string
			Required, Offered bool
		}
		SelfTest    []struct{ Name, Verdict string } `json:"self_test"`
		Conformance []struct {
			Name     string
			Passed   bool
			Failures []string
		}
	}
	must(t, json.Unmarshal([]byte(out), &found))
	if code != exitOK || !found.Passed || len(found.SelfTest) < 15 || found.Conformance != nil {
		t.Errorf("code %d: %s", code, out)
	}
	lacks := 0
	for _, n := range found.Needs {
		if !n.Offered {
			lacks++
			if n.Name != "RSAES_OAEP_SHA_256" || n.Required {
				t.Errorf("SoftHSM2 lacks %+v", n)
			}
		}
	}
	if lacks != 1 {
		t.Errorf("SoftHSM2 lacks %d things", lacks)
	}
	if after := objects(t, p.path("tokens")); after != before {
		t.Errorf("a check that only reads changed the token:\n%s\nwas\n%s", after, before)
	}

	out, code = check("--scratch", "--so-pin-file", p.path("so-pin"), "--output", "json")
	start := strings.Index(out, "{")
	if start < 0 {
		t.Fatalf("code %d: %s", code, out)
	}
	must(t, json.Unmarshal([]byte(out[start:]), &found))
	if code != exitOK || !found.Passed || len(found.Conformance) < 20 {
		t.Errorf("code %d: %s", code, out)
	}
	if out, code = check(); code != exitOK || !strings.Contains(out, "0 objects") || !strings.Contains(out, "can serve a node") {
		t.Errorf("after the check in it: code %d: %s", code, out)
	}

	for what, tc := range map[string]struct {
		args []string
		code int
		text string
	}{
		"no PIN of the officer": {[]string{"--scratch"}, exitConfig, "Security Officer"},
		"both ways":             {[]string{"--scratch", "--read-only"}, exitFailed, "none of the others can be"},
		"another output":        {[]string{"--output", "xml"}, exitConfig, "want text or json"},
		"unknown weakness":      {[]string{"--accept-weakness", "all"}, exitFailed, "no weakness"},
		"no such module":        {[]string{"--module", p.path("nothing.so")}, exitHSM, "not there"},
	} {
		if out, code := check(tc.args...); code != tc.code || !strings.Contains(out, tc.text) {
			t.Errorf("%s: code %d, want %d: %s", what, code, tc.code, out)
		}
	}

	p.configure("")
	p.start()
	c.found(p)
	p.terminate()
	if out, code := check("--scratch", "--so-pin-file", p.path("so-pin")); code == exitOK || !strings.Contains(out, "no scratch token") {
		t.Errorf("a node's token as scratch: code %d: %s", code, out)
	}
	p.start()
	c.until("the node serves after that", func(s *pb.StatusResponse) bool { return s.GetServing() }, p)
}

// TestHSMCheckNSS: a token with weaknesses can serve only where they are accepted.
func TestHSMCheckNSS(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1)
	p := c.nodes[0]
	module, arguments := p.onNSS()
	args := []string{"hsm", "check", "--module", module, "--module-arguments", arguments, "--token", p.name, "--pin-file", p.path("pin")}
	if out, code := kmsd(t, p.env, args...); code != exitFailed || !strings.Contains(out, "cannot serve a node") || !strings.Contains(out, "FAILED") {
		t.Errorf("nothing accepted: code %d: %s", code, out)
	}
	args = append(args, "--accept-weakness", strings.ReplaceAll(nssWeaknesses, " ", ""))
	if out, code := kmsd(t, p.env, args...); code != exitOK || !strings.Contains(out, "accepted") {
		t.Errorf("all accepted: code %d: %s", code, out)
	}
}

// objects is the names and contents of all objects in SoftHSM2's tokens below dir. (It notes
// each login beside them, in token.object.)
func objects(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || filepath.Ext(path) != ".object" || d.Name() == "token.object" {
			return err
		}
		body, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %x\n", path, body)
		return err
	}))
	return b.String()
}
