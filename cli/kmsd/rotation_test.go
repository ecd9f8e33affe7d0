package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/quorumkms/quorumkms/node/audit"
	"github.com/quorumkms/quorumkms/rpc/client"
	pb "github.com/quorumkms/quorumkms/rpc/quorumkmsv1"
)

const rotationPeriod = time.Minute // the shortest there is

// rotation is what takes a minute: it begins before the other tests and is looked at
// after them.
type rotation struct {
	admin, user      string
	rotated          string    // each minute
	first            time.Time // its first date
	disabled, doomed string    // the same, but in those states
	used             string    // by version 1, which made blob, and not since
	blob             []byte
	tried, source    string // a key that is to be deleted when a ReEncrypt to it is tried, and where from
}

func beginRotation(ctx context.Context, c *testCluster) *rotation {
	r := &rotation{}
	r.admin, r.user = c.tenant(ctx, "clock")
	keys := c.dial(r.admin).Keys()
	enable := func(key string) time.Time {
		c.t.Helper()
		before := time.Now().Truncate(time.Second)
		made, err := keys.EnableKeyRotation(ctx, &pb.EnableKeyRotationRequest{KeyId: key, Period: durationpb.New(rotationPeriod)})
		must(c.t, err)
		next := made.GetNextRotation().AsTime()
		if next.Before(before.Add(rotationPeriod)) || next.After(time.Now().Add(rotationPeriod)) {
			c.t.Errorf("enabled at %s, rotated first at %s", before, next)
		}
		return next
	}
	for _, key := range []*string{&r.rotated, &r.disabled, &r.doomed, &r.used, &r.tried, &r.source} {
		*key = c.keyOf(ctx, r.admin).GetKeyId()
	}
	r.first = enable(r.rotated)
	enable(r.disabled)
	enable(r.doomed)
	must(c.t, second(keys.DisableKey(ctx, &pb.DisableKeyRequest{KeyId: r.disabled})))
	must(c.t, second(keys.ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: r.doomed})))
	r.blob = c.encrypt(ctx, r.user, r.used, nil)
	must(c.t, second(keys.RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: r.used})))
	must(c.t, second(keys.ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: r.tried})))

	status := func(key string) *pb.GetKeyRotationStatusResponse {
		s, err := keys.GetKeyRotationStatus(ctx, &pb.GetKeyRotationStatusRequest{KeyId: key})
		must(c.t, err)
		return s
	}
	if s := status(r.rotated); !s.GetEnabled() || s.GetPeriod().AsDuration() != rotationPeriod || !s.GetNextRotation().AsTime().Equal(r.first) || s.GetLastRotation() != nil {
		c.t.Errorf("the status of what is rotated: %v", s)
	}
	if s := status(r.disabled); !s.GetEnabled() || s.GetNextRotation() == nil {
		c.t.Errorf("the status of a disabled key: %v", s)
	}
	if s := status(r.doomed); s.GetEnabled() || s.GetNextRotation() != nil {
		c.t.Errorf("the status of a key that is to be deleted: %v", s)
	}
	if s := status(r.used); s.GetEnabled() || s.GetLastRotation() == nil {
		c.t.Errorf("the status of a key that was rotated by hand: %v", s)
	}
	for what, period := range map[string]time.Duration{"59 s": 59 * time.Second, "parts of a second": rotationPeriod + time.Millisecond, "2,561 days": 2561 * 24 * time.Hour, "less than nothing": -rotationPeriod} {
		invalidWith("rotation period").check(c.t, "a period of "+what, second(keys.EnableKeyRotation(ctx, &pb.EnableKeyRotationRequest{KeyId: r.used, Period: durationpb.New(period)})))
	}
	return r
}

func (r *rotation) check(_ context.Context, c *testCluster) {
	ctx, cancel := context.WithTimeout(c.t.Context(), 4*patience) // it waits for whole minutes
	defer cancel()
	keys := c.dial(r.admin).Keys()
	// Uses are told each minute; a node that was killed before has forgotten its own.
	must(c.t, second(c.dial(r.user).Decrypt(ctx, r.blob, nil)))
	whenPending.check(c.t, "ReEncrypt to a key that is to be deleted", second(c.dial(r.user).Crypto().ReEncrypt(ctx, &pb.ReEncryptRequest{
		Ciphertext: c.encrypt(ctx, r.user, r.source, nil), DestinationKeyId: r.tried,
	})))
	versions := func(key string) []*pb.KeyVersion {
		v, err := keys.ListKeyVersions(ctx, &pb.ListKeyVersionsRequest{KeyId: key})
		must(c.t, err)
		return v.GetVersions()
	}
	must(c.t, second(c.dial(operatorID).Cluster().TransferLeadership(ctx, &pb.TransferLeadershipRequest{})))
	c.eventually("the key was rotated", func() bool { return len(versions(r.rotated)) > 1 }, c.nodes...)
	must(c.t, second(c.dial(operatorID).Cluster().TransferLeadership(ctx, &pb.TransferLeadershipRequest{})))
	c.newLeadersDuties(ctx, r)
	all := versions(r.rotated)
	for i, v := range all[1:] {
		due := r.first.Add(time.Duration(i) * rotationPeriod)
		if at := v.GetCreationDate().AsTime(); v.GetCause() != pb.RotationCause_ROTATION_CAUSE_AUTOMATIC || at.Before(due) || !at.Before(due.Add(rotationPeriod)) {
			c.t.Errorf("version %d was due at %s: %v", v.GetVersion(), due, v)
		}
	}
	s, err := keys.GetKeyRotationStatus(ctx, &pb.GetKeyRotationStatusRequest{KeyId: r.rotated})
	must(c.t, err)
	if again := versions(r.rotated); len(again) == len(all) {
		if want := r.first.Add(time.Duration(len(all)-1) * rotationPeriod); !s.GetNextRotation().AsTime().Equal(want) {
			c.t.Errorf("after %d rotations the next is at %s, want %s", len(all)-1, s.GetNextRotation().AsTime(), want)
		}
		if last := all[len(all)-1].GetCreationDate(); !s.GetLastRotation().AsTime().Equal(last.AsTime()) {
			c.t.Errorf("the last rotation was at %s, want %s", s.GetLastRotation().AsTime(), last.AsTime())
		}
	}
	done := func(e audit.Event) bool {
		return e.Name == "RotateKey" && e.KeyID == r.rotated && e.Result == audit.Success && e.DecidedBy == "schedule" && e.Tenant == "clock"
	}
	c.eventually("the rotations are recorded", func() bool { return c.countRecords(done) >= len(all)-1 })
	if n, made := c.countRecords(done), len(versions(r.rotated))-1; n > made {
		c.t.Errorf("%d rotations are recorded, %d were made", n, made)
	}

	// What is disabled is overdue, and rotated when it is enabled; the date is from then on.
	if v := versions(r.disabled); len(v) != 1 {
		c.t.Errorf("a disabled key was rotated: %v", v)
	}
	must(c.t, second(keys.EnableKey(ctx, &pb.EnableKeyRequest{KeyId: r.disabled})))
	c.eventually("the key that was overdue is rotated", func() bool { return len(versions(r.disabled)) == 2 }, c.nodes...)
	s, err = keys.GetKeyRotationStatus(ctx, &pb.GetKeyRotationStatusRequest{KeyId: r.disabled})
	if must(c.t, err); !s.GetNextRotation().AsTime().After(time.Now()) {
		c.t.Errorf("the next rotation of what was overdue: %v", s)
	}
	// Cancelling a deletion brings the schedule back; the key is disabled.
	must(c.t, second(keys.CancelKeyDeletion(ctx, &pb.CancelKeyDeletionRequest{KeyId: r.doomed})))
	s, err = keys.GetKeyRotationStatus(ctx, &pb.GetKeyRotationStatusRequest{KeyId: r.doomed})
	if must(c.t, err); !s.GetEnabled() || len(versions(r.doomed)) != 1 {
		c.t.Errorf("the schedule of a key whose deletion was cancelled: %v, versions %v", s, versions(r.doomed))
	}

	c.eventually("the last use is known", func() bool { return versions(r.used)[0].GetLastUsed() != nil }, c.nodes...)
	if v := versions(r.used); v[1].GetLastUsed() != nil {
		c.t.Errorf("a version that was never used: %v", v[1])
	}
	describe := func(key string) *pb.KeyMetadata {
		k, err := keys.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: key})
		must(c.t, err)
		return k.GetKey()
	}
	c.eventually("the attempt to use what was to be deleted is known", func() bool { return describe(r.tried).GetRefusedUse() != nil }, c.nodes...)
	c.eventually("where it was to come from counts as used", func() bool { return describe(r.source).GetLastUsed() != nil }, c.nodes...)
	if k := describe(r.source); k.GetRefusedUse() != nil {
		c.t.Errorf("the key that a ReEncrypt was to come from: %v", k)
	}
	if k := describe(r.tried); k.GetLastUsed() != nil {
		c.t.Errorf("the key that was never used: %v", k)
	}
}

// newLeadersDuties waits until the leader has done what is due.
func (c *testCluster) newLeadersDuties(ctx context.Context, r *rotation) {
	c.t.Helper()
	grant := c.give(ctx, r.admin, c.nodes[0], &pb.CreateGrantRequest{
		KeyId: r.used, GranteePrincipal: uri(r.user), Operations: []string{"Encrypt"}, ExpirationDate: timestamppb.New(time.Now().Add(2 * time.Second)),
	})
	c.eventually("the leader does what is due", func() bool {
		l, err := c.dial(r.admin).Grants().ListGrants(ctx, &pb.ListGrantsRequest{KeyId: r.used, GrantId: grant})
		must(c.t, err)
		return len(l.GetGrants()) == 0
	}, c.nodes...)
}

// testVersions disables versions and has them destroyed, protects keys and binds
// resources: restrictions hold on every node at once.
func testVersions(ctx context.Context, c *testCluster) {
	admin, user := c.tenant(ctx, "versions")
	other := c.identity("/tenant/versions/user/versions-other")
	key := c.keyOf(ctx, admin).GetKeyId()
	keys, users := c.dial(admin).Keys(), c.through(ctx, user)
	blobs := [][]byte{c.encrypt(ctx, user, key, nil)}
	for range 2 {
		must(c.t, second(keys.RotateKeyOnDemand(ctx, &pb.RotateKeyOnDemandRequest{KeyId: key})))
		blobs = append(blobs, c.encrypt(ctx, user, key, nil))
	}
	c.level(ctx)
	open := func(version int) *pb.DecryptRequest { return &pb.DecryptRequest{Ciphertext: blobs[version-1]} }
	seal := &pb.EncryptRequest{KeyId: key, Plaintext: []byte("x")}
	is := func(want string) {
		c.t.Helper()
		r, err := keys.ListKeyVersions(ctx, &pb.ListKeyVersionsRequest{KeyId: key})
		must(c.t, err)
		var got []string
		for _, v := range r.GetVersions() {
			state := strings.TrimPrefix(v.GetState().String(), "KEY_VERSION_STATE_")
			if v.GetCurrent() {
				state += "*"
			}
			got = append(got, state)
		}
		if strings.Join(got, " ") != want {
			c.t.Errorf("versions %q, want %s", got, want)
		}
	}
	is("ENABLED ENABLED ENABLED*")
	for i, p := range c.nodes {
		must(c.t, second(c.dial(admin, p).Keys().DisableKeyVersion(ctx, &pb.DisableKeyVersionRequest{KeyId: key, Version: 1})))
		c.everywhere(ctx, "a disabled version", versionDisabled, users, open(1))
		c.everywhere(ctx, "ReEncrypt of a disabled version", versionDisabled, users, &pb.ReEncryptRequest{Ciphertext: blobs[0]})
		c.everywhere(ctx, "another version", nil, users, open(2))
		c.everywhere(ctx, "the current version", nil, users, seal)
		must(c.t, second(c.dial(admin, c.nodes[(i+1)%3]).Keys().EnableKeyVersion(ctx, &pb.EnableKeyVersionRequest{KeyId: key, Version: 1})))
		c.level(ctx)
		c.everywhere(ctx, "an enabled version", nil, users, open(1))
		must(c.t, second(c.dial(admin, p).Keys().DisableKeyVersion(ctx, &pb.DisableKeyVersionRequest{KeyId: key, Version: 3})))
		c.everywhere(ctx, "Encrypt without a current version", versionDisabled, users, seal)
		c.everywhere(ctx, "Decrypt of an old version", nil, users, open(2))
		must(c.t, second(c.dial(admin, p).Keys().EnableKeyVersion(ctx, &pb.EnableKeyVersionRequest{KeyId: key, Version: 3})))
		c.level(ctx)
	}
	destroy := func(version, days uint32) (*pb.ScheduleKeyVersionDestructionResponse, error) {
		return keys.ScheduleKeyVersionDestruction(ctx, &pb.ScheduleKeyVersionDestructionRequest{KeyId: key, Version: version, PendingWindowDays: days})
	}
	refused(codes.FailedPrecondition, client.ErrKeyVersionCurrent, "current").check(c.t, "the destruction of the current version", second(destroy(3, 7)))
	notFound.check(c.t, "the destruction of no version", second(destroy(4, 7)))
	invalidWith("version is missing").check(c.t, "the destruction of version 0", second(destroy(0, 7)))
	invalidWith("6 days").check(c.t, "a destruction in six days", second(destroy(1, 6)))
	for asked, days := range map[uint32]int{0: 30, 7: 7} {
		began := time.Now().Truncate(time.Second)
		r, err := destroy(1, asked)
		must(c.t, err)
		if at := r.GetDestructionDate().AsTime().AddDate(0, 0, -days); at.Before(began) || at.After(time.Now()) {
			c.t.Errorf("destroyed at %s, asked was %d days", r.GetDestructionDate().AsTime(), days)
		}
		is("DESTROY_SCHEDULED ENABLED ENABLED*")
		c.everywhere(ctx, "a version that is to be destroyed", versionDisabled, users, open(1))
		refused(codes.FailedPrecondition, client.ErrKeyVersionDisabled, "cancel").check(c.t, "EnableKeyVersion of it",
			second(keys.EnableKeyVersion(ctx, &pb.EnableKeyVersionRequest{KeyId: key, Version: 1})))
		must(c.t, second(keys.CancelKeyVersionDestruction(ctx, &pb.CancelKeyVersionDestructionRequest{KeyId: key, Version: 1})))
		is("DISABLED ENABLED ENABLED*")
		c.everywhere(ctx, "a version that is not to be destroyed any more", versionDisabled, users, open(1))
	}
	notPendingVersion.check(c.t, "CancelKeyVersionDestruction again", second(keys.CancelKeyVersionDestruction(ctx, &pb.CancelKeyVersionDestructionRequest{KeyId: key, Version: 1})))

	// Protection, and what the key protects.
	protected := refused(codes.FailedPrecondition, client.ErrKeyProtected, "protected against deletion")
	must(c.t, second(keys.SetDeletionProtection(ctx, &pb.SetDeletionProtectionRequest{KeyId: key, Enabled: true})))
	protected.check(c.t, "ScheduleKeyDeletion of a protected key", second(keys.ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: key})))
	protected.check(c.t, "the destruction of a version of a protected key", second(destroy(1, 7)))
	must(c.t, second(keys.SetDeletionProtection(ctx, &pb.SetDeletionProtectionRequest{KeyId: key})))
	for i := range 7 {
		must(c.t, second(c.dial(user, c.nodes[i%3]).Keys().BindResource(ctx, &pb.BindResourceRequest{KeyId: key, Resource: fmt.Sprintf("volume/%d", i)})))
	}
	must(c.t, second(users[1].Keys().BindResource(ctx, &pb.BindResourceRequest{KeyId: key, Resource: "volume/3"}))) // again
	refused(codes.FailedPrecondition, client.ErrKeyInUse, "volume/0, volume/1, volume/2, volume/3, volume/4 and 2 more").
		check(c.t, "ScheduleKeyDeletion of what protects something", second(keys.ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: key})))
	c.level(ctx)
	var bound []string
	for i, marker := 0, ""; ; i++ {
		r, err := c.dial(admin, c.nodes[i%3]).Keys().ListResources(ctx, &pb.ListResourcesRequest{KeyId: key, Limit: 3, Marker: marker})
		must(c.t, err)
		for _, x := range r.GetResources() {
			bound = append(bound, x.GetName())
			if x.GetRegisteredBy() != uri(user) || x.GetRegistrationDate() == nil {
				c.t.Errorf("a resource: %v", x)
			}
		}
		if marker = r.GetNextMarker(); marker == "" {
			break
		}
	}
	if got := strings.Join(bound, " "); got != "volume/0 volume/1 volume/2 volume/3 volume/4 volume/5 volume/6" {
		c.t.Errorf("resources %q", got)
	}
	release := func(by string, i int) error {
		return second(c.dial(by).Keys().ReleaseResource(ctx, &pb.ReleaseResourceRequest{KeyId: key, Resource: fmt.Sprintf("volume/%d", i)}))
	}
	notFound.check(c.t, "ReleaseResource by another user", release(other, 0))
	must(c.t, release(user, 0))
	notFound.check(c.t, "ReleaseResource again", release(user, 0))
	for i := range 6 {
		must(c.t, release(admin, i+1))
	}
	k, err := keys.DescribeKey(ctx, &pb.DescribeKeyRequest{KeyId: key})
	if must(c.t, err); k.GetKey().GetResourceCount() != 0 {
		c.t.Errorf("the key protects %d resources", k.GetKey().GetResourceCount())
	}
	must(c.t, second(keys.ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: key})))
	c.everywhere(ctx, "the key is to be deleted", whenPending, users, open(2))
}

// testDoomedKey: the use of a key that is to be deleted is an alarm in the record, of that
// key; what the state forbids otherwise is none.
func testDoomedKey(ctx context.Context, c *testCluster) {
	admin, user := c.tenant(ctx, "doom")
	key, other := c.keyOf(ctx, admin).GetKeyId(), c.keyOf(ctx, admin)
	blob, otherBlob := c.encrypt(ctx, user, key, nil), c.encrypt(ctx, user, other.GetKeyId(), nil)
	keys := c.dial(admin).Keys()
	p := c.nodes[1]
	x := c.dial(user, p)
	alarm := func(what string, call func() error) audit.Event {
		c.t.Helper()
		return c.recorded(p, what, func() { whenPending.check(c.t, what, call()) })
	}
	must(c.t, second(keys.ScheduleKeyDeletion(ctx, &pb.ScheduleKeyDeletionRequest{KeyId: key})))
	for what, call := range map[string]func() error{
		"Decrypt":        func() error { return second(x.Decrypt(ctx, blob, nil)) },
		"Encrypt":        func() error { return second(x.Encrypt(ctx, key, []byte("x"), nil)) },
		"ReEncrypt from": func() error { return second(x.ReEncrypt(ctx, blob, nil, other.GetKeyId())) },
	} {
		if e := alarm(what, call); e.Alarm != audit.UseOfDoomedKey || e.KeyID != key || e.Tenant != "doom" {
			c.t.Errorf("%s: the record %+v", what, e)
		}
	}
	e := alarm("ReEncrypt to", func() error { return second(x.ReEncrypt(ctx, otherBlob, nil, key)) })
	if e.Alarm != audit.UseOfDoomedKey || e.KeyID != other.GetKeyId() || !strings.HasSuffix(e.Target, key) {
		c.t.Errorf("ReEncrypt to: the record %+v", e)
	}
	must(c.t, second(keys.CancelKeyDeletion(ctx, &pb.CancelKeyDeletionRequest{KeyId: key})))
	c.level(ctx)
	e = c.recorded(p, "Decrypt with a disabled key", func() { whenDisabled.check(c.t, "Decrypt", second(x.Decrypt(ctx, blob, nil))) })
	if e.Alarm != "" {
		c.t.Errorf("a disabled key gives an alarm: %+v", e)
	}
	must(c.t, second(keys.EnableKey(ctx, &pb.EnableKeyRequest{KeyId: key})))
	c.level(ctx)
	got, err := x.Decrypt(ctx, blob, nil)
	if must(c.t, err); !bytes.Equal(got, []byte("x")) {
		c.t.Errorf("a key whose deletion was cancelled opens %q", got)
	}
}
